//! The key at rest: a small JSON file of mode 0600, plain or sealed by a passphrase.
//!
//! A sealed file holds the secret under XChaCha20-Poly1305 with a key made by Argon2id; the parameters stand in the
//! file, so that they can grow later. Address and public key are readable without the passphrase (a node can say
//! who it is) and are bound to the sealed part. The file appears whole or not at all, and a file that others may
//! read is refused rather than used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use alloy_primitives::Address;
use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::keys::{KeyError, PublicKey, SecretKey};

/// The version of this format.
const VERSION: u32 = 1;

/// Largest file read; a real one has about 500 bytes.
const MAX_FILE: u64 = 16 << 10;

/// Argon2id for new files: 64 MiB, 3 passes, 1 lane (the second recommended choice of RFC 9106): about a fifth of
/// a second, and a quarter of the memory a node may use.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;

/// Parameters that a file may ask for. A file is trusted little more than its owner's disk, but a damaged one must
/// not take all memory.
const MAX_MEMORY_KIB: u32 = 1 << 20;
const MAX_PASSES: u32 = 64;
const MAX_LANES: u32 = 16;

/// Why a key file cannot be read or written. No variant holds any part of a secret.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The file system refused.
    #[error("cannot {action} key file {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A key is there already.
    #[error("{0} exists already and was left as it is; a key that is overwritten is money lost")]
    Exists(PathBuf),
    /// Others may read the file.
    #[error("{path} has mode {mode:03o}: others may read the secret key; run: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file.
    #[error("{path} is not a key file: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a later version.
    #[error("{path} has format version {found}; this program reads version {VERSION}: use a newer one")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file is sealed and no passphrase was given.
    #[error("{0} is sealed by a passphrase; give it by prompt, file or descriptor")]
    PassphraseNeeded(PathBuf),
    /// The passphrase does not open the file.
    #[error("wrong passphrase for {0} (or the file is damaged); nothing was changed")]
    WrongPassphrase(PathBuf),
    /// No key could be derived or made.
    #[error("cannot seal or open the key: {0}")]
    Crypto(String),
    /// The key inside is none.
    #[error("{path}: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with the key.
        source: KeyError,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    address: Address,
    public_key: PublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<Sealed>,
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    nonce: String,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kdf {
    Argon2id,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Cipher {
    XChaCha20Poly1305,
}

/// What a key file says without its passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFileInfo {
    /// The public half of the key.
    pub public_key: PublicKey,
    /// Whether a passphrase is needed to load it.
    pub sealed: bool,
}

/// Writes a new key file, sealed if there is a passphrase. An existing file is never touched.
pub fn save(path: &Path, key: &SecretKey, passphrase: Option<&[u8]>) -> Result<(), KeyFileError> {
    write(path, key, passphrase, false)
}

/// Replaces a key file, to set, change or remove its passphrase. The old file stays until the new one is on disk.
pub fn replace(path: &Path, key: &SecretKey, passphrase: Option<&[u8]>) -> Result<(), KeyFileError> {
    write(path, key, passphrase, true)
}

/// Reads what a key file says openly.
pub fn inspect(path: &Path) -> Result<KeyFileInfo, KeyFileError> {
    let file = read(path)?;
    Ok(KeyFileInfo { public_key: file.public_key, sealed: file.sealed.is_some() })
}

/// Loads the key. `passphrase` is asked for only if the file is sealed; `None` from it means that there is none.
pub fn load(
    path: &Path,
    passphrase: impl FnOnce() -> Option<Zeroizing<Vec<u8>>>,
) -> Result<SecretKey, KeyFileError> {
    let file = read(path)?;
    let malformed = |why: &str| KeyFileError::Malformed { path: path.to_owned(), why: why.to_owned() };
    let mut secret = Zeroizing::new([0u8; 32]);
    match (&file.secret, &file.sealed) {
        (Some(text), None) => hex::decode_to_slice(text, secret.as_mut_slice())
            .map_err(|_| malformed("its secret is not 32 bytes of hex"))?,
        (None, Some(sealed)) => {
            let passphrase = passphrase().ok_or_else(|| KeyFileError::PassphraseNeeded(path.to_owned()))?;
            let opened = open(path, sealed, &file.public_key, &passphrase)?;
            if opened.len() != secret.len() {
                return Err(malformed("its sealed part is not 32 bytes"));
            }
            secret.copy_from_slice(&opened);
        }
        _ => return Err(malformed("it needs either a secret or a sealed part")),
    }
    let key = SecretKey::from_bytes(&secret)
        .map_err(|source| KeyFileError::Key { path: path.to_owned(), source })?;
    if key.public() == file.public_key {
        Ok(key)
    } else {
        Err(malformed("secret and public key do not belong together"))
    }
}

fn read(path: &Path) -> Result<KeyFile, KeyFileError> {
    let failed = |source| KeyFileError::Io { action: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    let malformed = |why: String| KeyFileError::Malformed { path: path.to_owned(), why };
    if text.len() as u64 > MAX_FILE {
        return Err(malformed(format!("larger than {MAX_FILE} bytes")));
    }
    // The version first: a later format may have other fields.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    // A parser's message may quote the text, which may be the secret: only the place is told.
    let place = |error: serde_json::Error| {
        malformed(format!("line {}, column {} is not as it should be", error.line(), error.column()))
    };
    let Versioned { version } = serde_json::from_str(&text).map_err(place)?;
    if version > VERSION {
        return Err(KeyFileError::Newer { path: path.to_owned(), found: version });
    }
    serde_json::from_str(&text).map_err(place)
}

fn write(
    path: &Path,
    key: &SecretKey,
    passphrase: Option<&[u8]>,
    overwrite: bool,
) -> Result<(), KeyFileError> {
    let public_key = key.public();
    let (secret, sealed) = match passphrase {
        None => (Some(hex::encode(key.to_bytes().as_slice())), None),
        Some(passphrase) => (None, Some(seal(key, &public_key, passphrase)?)),
    };
    let file = KeyFile { version: VERSION, address: key.address(), public_key, secret, sealed };
    let text =
        serde_json::to_string_pretty(&file).map_err(|error| KeyFileError::Crypto(error.to_string()))?;
    let text = Zeroizing::new(text);
    let failed = |action| move |source: io::Error| KeyFileError::Io { action, path: path.to_owned(), source };

    let mut tag = [0u8; 8];
    random(&mut tag)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}", hex::encode(tag)));
    let placed = write_whole(&temporary, &text).map_err(failed("write")).and_then(|()| {
        if overwrite {
            fs::rename(&temporary, path).map_err(failed("replace"))
        } else {
            // Unlike a rename, a link fails where a file exists.
            fs::hard_link(&temporary, path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_owned()),
                _ => failed("create")(error),
            })
        }
    });
    let removed = match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove the temporary copy of")(error))
        }
        _ => Ok(()),
    };
    placed?;
    removed?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of"))
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

fn random(bytes: &mut [u8]) -> Result<(), KeyFileError> {
    getrandom::fill(bytes).map_err(|error| KeyFileError::Crypto(error.to_string()))
}

fn cipher(passphrase: &[u8], salt: &[u8], params: Params) -> Result<XChaCha20Poly1305, KeyFileError> {
    let mut key = Zeroizing::new([0u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase, salt, key.as_mut_slice())
        .map_err(|error| KeyFileError::Crypto(error.to_string()))?;
    XChaCha20Poly1305::new_from_slice(key.as_slice()).map_err(|error| KeyFileError::Crypto(error.to_string()))
}

fn params(memory_kib: u32, passes: u32, lanes: u32) -> Result<Params, KeyFileError> {
    Params::new(memory_kib, passes, lanes, Some(32)).map_err(|error| KeyFileError::Crypto(error.to_string()))
}

/// What the sealed part is bound to: format and public key.
fn bound(public_key: &PublicKey) -> Vec<u8> {
    [&b"btfs key 1 "[..], public_key.as_bytes()].concat()
}

fn seal(key: &SecretKey, public_key: &PublicKey, passphrase: &[u8]) -> Result<Sealed, KeyFileError> {
    let (mut salt, mut nonce) = ([0u8; 16], [0u8; 24]);
    random(&mut salt)?;
    random(&mut nonce)?;
    let cipher = cipher(passphrase, &salt, params(MEMORY_KIB, PASSES, LANES)?)?;
    let secret = key.to_bytes();
    let payload = Payload { msg: secret.as_slice(), aad: &bound(public_key) };
    let ciphertext = cipher
        .encrypt(&XNonce::from(nonce), payload)
        .map_err(|_| KeyFileError::Crypto("encryption failed".to_owned()))?;
    Ok(Sealed {
        kdf: Kdf::Argon2id,
        cipher: Cipher::XChaCha20Poly1305,
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        lanes: LANES,
        salt: hex::encode(salt),
        nonce: hex::encode(nonce),
        ciphertext: hex::encode(ciphertext),
    })
}

fn open(
    path: &Path,
    sealed: &Sealed,
    public_key: &PublicKey,
    passphrase: &[u8],
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let malformed = |why: &str| KeyFileError::Malformed { path: path.to_owned(), why: why.to_owned() };
    if sealed.memory_kib > MAX_MEMORY_KIB || sealed.passes > MAX_PASSES || sealed.lanes > MAX_LANES {
        return Err(malformed("its Argon2id parameters are beyond what this program allows"));
    }
    let mut nonce = [0u8; 24];
    hex::decode_to_slice(&sealed.nonce, &mut nonce)
        .map_err(|_| malformed("its nonce is not 24 bytes of hex"))?;
    let salt = hex::decode(&sealed.salt).map_err(|_| malformed("its salt is not hex"))?;
    let ciphertext = hex::decode(&sealed.ciphertext).map_err(|_| malformed("its ciphertext is not hex"))?;
    let cipher = cipher(passphrase, &salt, params(sealed.memory_kib, sealed.passes, sealed.lanes)?)?;
    let payload = Payload { msg: &ciphertext, aad: &bound(public_key) };
    cipher
        .decrypt(&XNonce::from(nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| KeyFileError::WrongPassphrase(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn passphrase(text: &str) -> impl FnOnce() -> Option<Zeroizing<Vec<u8>>> {
        let bytes = text.as_bytes().to_vec();
        move || Some(Zeroizing::new(bytes))
    }

    fn never() -> Option<Zeroizing<Vec<u8>>> {
        panic!("a plain file asks for no passphrase")
    }

    #[test]
    fn a_plain_key_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = SecretKey::generate().unwrap();
        save(&path, &key, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(load(&path, never).unwrap().public(), key.public());
        let again = SecretKey::generate().unwrap();
        assert!(matches!(save(&path, &again, None), Err(KeyFileError::Exists(_))));
        assert_eq!(load(&path, never).unwrap().public(), key.public());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary files stay");
    }

    #[test]
    fn a_sealed_key_needs_its_passphrase() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = SecretKey::generate().unwrap();
        save(&path, &key, Some(b"correct horse")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&hex::encode(key.to_bytes().as_slice())));
        assert_eq!(inspect(&path).unwrap(), KeyFileInfo { public_key: key.public(), sealed: true });
        assert_eq!(load(&path, passphrase("correct horse")).unwrap().public(), key.public());
        let wrong = load(&path, passphrase("battery staple")).unwrap_err();
        assert!(matches!(wrong, KeyFileError::WrongPassphrase(_)));
        assert!(!wrong.to_string().contains("battery"));
        assert!(matches!(load(&path, || None), Err(KeyFileError::PassphraseNeeded(_))));
        replace(&path, &key, None).unwrap();
        assert_eq!(load(&path, never).unwrap().public(), key.public());
    }

    #[test]
    fn exposed_damaged_and_newer_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = SecretKey::from_bytes(&[0x5a; 32]).unwrap();
        save(&path, &key, None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(load(&path, never), Err(KeyFileError::Exposed { .. })));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert!(matches!(load(&path, never), Err(KeyFileError::Newer { found: 2, .. })));
        fs::write(&path, text.replace("5a5a", "5a5b")).unwrap();
        assert!(matches!(load(&path, never), Err(KeyFileError::Malformed { .. })));
        fs::write(&path, text.replace("\"secret\"", "\"5a5a5a5a\"")).unwrap();
        let error = load(&path, never).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("5a5a"), "no part of the secret in {error}");
        fs::write(&path, vec![b' '; MAX_FILE as usize + 1]).unwrap();
        assert!(matches!(load(&path, never), Err(KeyFileError::Malformed { .. })));
    }
}
