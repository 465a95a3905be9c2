//! What `add` can be asked for, and what it means for blocks.

use btfs_storage::hash::Function;
use btfs_storage::import::{Chunker, ImportOptions, Layout, Overrides, Profile};
use btfs_storage::unixfs::Metadata;
use btfs_storage::{Cid, Pin, PinKind};
use serde::{Deserialize, Serialize};

use crate::api::call::ApiError;
use crate::calls::files::{own_pin, private_pin};

/// How content becomes blocks, and what is done with them. The names and meanings are those of Kubo's options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddOptions {
    /// `unixfs-v1-2025` (default) or `unixfs-v0-2015`; the rest says what differs from it.
    pub profile: Option<String>,
    /// `size-N`, `rabin[-AVG|-MIN-AVG-MAX]`, `buzhash` or `fastcdc[-AVG|-MIN-AVG-MAX]`.
    pub chunker: Option<String>,
    /// Trickle layout instead of the balanced one.
    pub trickle: bool,
    /// 0 or 1; without `raw_leaves`, 1 makes leaves raw and 0 dag-pb.
    pub cid_version: Option<u8>,
    /// What blocks are named by; default sha2-256. Another function means version 1.
    pub hash: Option<String>,
    /// Whether leaf blocks are the content itself.
    pub raw_leaves: Option<bool>,
    /// Put small blocks into their CIDs.
    pub inline: bool,
    /// Bytes of the largest such block; default 32, at most 64.
    pub inline_limit: Option<usize>,
    /// Most links of a file's node.
    pub max_file_links: Option<usize>,
    /// Entries above which a directory is sharded whatever its size.
    pub max_directory_links: Option<usize>,
    /// Buckets of a shard of a large directory.
    pub max_hamt_fanout: Option<u32>,
    /// Record the permissions of files and directories.
    pub preserve_mode: bool,
    /// Record times of modification.
    pub preserve_mtime: bool,
    /// Permissions to record, in octal.
    pub mode: Option<String>,
    /// Time of modification to record: seconds since 1970.
    pub mtime: Option<i64>,
    /// Nanoseconds to go with it.
    pub mtime_nsecs: Option<u32>,
    /// Put what is added into a directory, under its name.
    pub wrap_with_directory: bool,
    /// Only compute the CID; store nothing.
    pub only_hash: bool,
    /// Do not pin: the collector may take it.
    pub no_pin: bool,
    /// The pin's name; default: the name of what is added.
    pub pin_name: Option<String>,
    /// Do not announce it, now or when a daemon starts: for sealed files.
    pub private: bool,
}

/// Largest block that `--inline` puts into its CID unless a limit is given; Kubo's.
const INLINE_LIMIT: usize = 32;

impl AddOptions {
    /// Options from a query, each under its name here or, with hyphens, in Kubo's RPC. What is no option is skipped:
    /// clients send more than matters here.
    pub fn from_query(query: &str) -> Result<AddOptions, ApiError> {
        let mut options = AddOptions::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let wrong = |what: &str| ApiError::bad(format!("{name}={value} is not {what}"));
            let flag = || match &*value {
                "" | "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(wrong("true or false")),
            };
            macro_rules! number {
                () => {
                    Some(value.parse().map_err(|_| wrong("a number in its range"))?)
                };
            }
            match name.replace('-', "_").as_str() {
                "profile" => options.profile = Some(value.into_owned()),
                "chunker" => options.chunker = Some(value.into_owned()),
                "trickle" => options.trickle = flag()?,
                "cid_version" => options.cid_version = number!(),
                "hash" => options.hash = Some(value.into_owned()),
                "raw_leaves" => options.raw_leaves = Some(flag()?),
                "inline" => options.inline = flag()?,
                "inline_limit" => options.inline_limit = number!(),
                "max_file_links" => options.max_file_links = number!(),
                "max_directory_links" => options.max_directory_links = number!(),
                "max_hamt_fanout" => options.max_hamt_fanout = number!(),
                "preserve_mode" => options.preserve_mode = flag()?,
                "preserve_mtime" => options.preserve_mtime = flag()?,
                "mode" => options.mode = Some(value.into_owned()),
                "mtime" => options.mtime = number!(),
                "mtime_nsecs" => options.mtime_nsecs = number!(),
                "wrap_with_directory" => options.wrap_with_directory = flag()?,
                "only_hash" => options.only_hash = flag()?,
                "no_pin" => options.no_pin = flag()?,
                "pin" => options.no_pin = !flag()?,
                "private" => options.private = flag()?,
                "pin_name" => options.pin_name = Some(value.into_owned()),
                "nocopy" if flag()? => {
                    return Err(ApiError::bad("a stream lies in no file: `btfs add --nocopy` takes paths"));
                }
                "to_files" if value != "false" => {
                    return Err(ApiError::bad(format!("there is no option {name} here; nothing was added")));
                }
                _ => {}
            }
        }
        Ok(options)
    }

    /// The same options as a query.
    pub fn to_query(&self) -> Result<String, serde_json::Error> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if let serde_json::Value::Object(fields) = serde_json::to_value(self)? {
            for (name, value) in fields {
                match value {
                    serde_json::Value::Null => {}
                    serde_json::Value::String(text) => drop(query.append_pair(&name, &text)),
                    other => drop(query.append_pair(&name, &other.to_string())),
                }
            }
        }
        Ok(query.finish())
    }

    /// The profile that these options describe. `metadata`: modes or times are recorded.
    pub(in crate::calls) fn profile(&self, metadata: bool) -> Result<Profile, ApiError> {
        let profile = profile(self.profile.as_deref())?;
        let chunker = self.chunker.as_deref().map(str::parse::<Chunker>).transpose();
        let overrides = Overrides {
            chunker: chunker.map_err(ApiError::bad)?,
            layout: self.trickle.then_some(Layout::Trickle),
            cid_version: self.cid_version,
            function: Some(self.function()?),
            raw_leaves: self.raw_leaves,
            inline: self.inline.then(|| self.inline_limit.unwrap_or(INLINE_LIMIT)),
            max_file_links: self.max_file_links,
            max_directory_links: self.max_directory_links,
            max_hamt_fanout: self.max_hamt_fanout,
            metadata,
        };
        profile.with(&overrides).map_err(ApiError::bad)
    }

    /// What blocks are named by.
    pub(in crate::calls) fn function(&self) -> Result<Function, ApiError> {
        match self.hash.as_deref().unwrap_or_default() {
            "" => Ok(Function::SHA2_256),
            name if name.eq_ignore_ascii_case("identity") => Err(ApiError::bad(
                "the identity names only what fits into a CID: leave hash out, and take inline",
            )),
            name => name.parse().map_err(ApiError::bad),
        }
    }

    /// The pin that a root gets, if it gets one.
    pub(in crate::calls) fn pin(&self, root: Cid, name: Option<String>) -> Option<Pin> {
        let pin =
            if self.private { private_pin(root, name) } else { own_pin(root, name, PinKind::Recursive) };
        (!self.no_pin).then_some(pin)
    }

    /// What is recorded of an entry: what is given for all, or its own if that is to be preserved.
    pub(in crate::calls) fn preserved(
        &self,
        given: Metadata,
        mode: Option<u32>,
        mtime: Option<(i64, u32)>,
    ) -> Metadata {
        let own = Metadata::new(mode, mtime);
        Metadata {
            mode: if self.preserve_mode { own.mode } else { given.mode },
            mtime: if self.preserve_mtime { own.mtime } else { given.mtime },
        }
    }

    /// The mode and time that are given, in the options of an import.
    pub(in crate::calls) fn given(&self) -> Result<ImportOptions, ApiError> {
        let mode = self.mode.as_deref().map(|mode| {
            u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
                ApiError::bad(format!("{mode} is no mode; modes are octal, such as 0644, up to 7777"))
            })
        });
        let mtime = match (self.mtime, self.mtime_nsecs.unwrap_or(0)) {
            (Some(seconds), nanoseconds @ 0..=999_999_999) => Some((seconds, nanoseconds)),
            (None, 0) => None,
            _ => return Err(ApiError::bad("mtime-nsecs goes from 0 to 999999999, with an mtime")),
        };
        Ok(ImportOptions { mode: mode.transpose()?, mtime, ..ImportOptions::default() })
    }
}

/// The profile of a name; the default one without.
pub fn profile(name: Option<&str>) -> Result<Profile, ApiError> {
    match name {
        None => Ok(Profile::V1_2025),
        Some(name) => Profile::by_name(name).ok_or_else(|| {
            ApiError::bad(format!(
                "there is no profile `{name}`; there are unixfs-v1-2025 and unixfs-v0-2015"
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_a_query() {
        let options = AddOptions {
            chunker: Some("rabin-16-64-256".into()),
            trickle: true,
            cid_version: Some(0),
            hash: Some("blake2b-256".into()),
            raw_leaves: Some(false),
            mode: Some("0644".into()),
            mtime: Some(-7),
            pin_name: Some("a & b=c".into()),
            ..AddOptions::default()
        };
        let read = AddOptions::from_query(&options.to_query().expect("a query")).expect("options");
        assert_eq!(read, options);
        let kubo = AddOptions::from_query("cid-version=1&raw-leaves=false&pin=false&stream-channels=true");
        let expected = AddOptions {
            cid_version: Some(1),
            raw_leaves: Some(false),
            no_pin: true,
            ..AddOptions::default()
        };
        assert_eq!(kubo.expect("options"), expected);
        assert!(
            AddOptions::from_query("nocopy=false&to-files=false&preserve-mode")
                .is_ok_and(|o| o.preserve_mode)
        );
        for wrong in ["trickle=perhaps", "cid-version=x", "nocopy=true", "nocopy", "to-files=/", "to-files"] {
            assert!(AddOptions::from_query(wrong).is_err(), "{wrong}");
        }
    }
    #[test]
    fn hash_functions_are_those_of_kubo() {
        let profile = |query: &str| AddOptions::from_query(query).expect("options").profile(false);
        let made = |query: &str| profile(query).map(|profile| profile.function().name());
        assert_eq!(made("").expect("the default"), "sha2-256");
        for (query, name) in [
            ("hash=sha2-256&cid-version=0", "sha2-256"),
            ("hash=SHA3-512", "sha3-512"),
            ("hash=blake3&cid-version=1", "blake3"),
            ("hash=blake2b-256&profile=unixfs-v0-2015", "blake2b-256"),
        ] {
            assert_eq!(made(query).expect(query), name);
        }
        for (query, word) in [
            ("hash=blake3&cid-version=0", "version 0"),
            ("hash=md5", "md5"),
            ("hash=blake2b-128", "blake2b-160"),
            ("hash=identity", "inline"),
        ] {
            let told = made(query).expect_err(query).message;
            assert!(told.contains(word), "{told}");
        }
    }
}
