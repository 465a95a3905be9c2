//! Files and directories as a tar archive, or one file compressed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cid::Cid;
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::export::{Partial, RESTORED_MODE};
use super::tree::{Outward, Visit, visit_tree};
use super::{FileReader, ReadError};
use crate::BlockSource;
use crate::unixfs::Metadata;

/// Permissions of entries that record none.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
const LINK_MODE: u32 = 0o777;

/// How content is packed into one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// As a tar archive; otherwise it must be a file, and is its bytes.
    pub tar: bool,
    /// What becomes of symlinks that lead out of the archive.
    pub outward: Outward,
    /// Compressed by gzip, at this level from 0 to 9.
    pub gzip: Option<u32>,
}

/// Writes the file, symlink or directory at `cid` to `out` as `packing` says. In a tar archive it is under `name`.
///
/// Names and symlinks that would lead out of the directory that is unpacked are refused as by [`export`](super::export):
/// the stream then ends early. Entries without a recorded time have that of 1970, so that the same content is always
/// the same archive. `progress` is called with the content bytes written so far.
pub fn pack(
    src: &dyn BlockSource,
    cid: &Cid,
    name: &str,
    packing: Packing,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ReadError> {
    match packing.gzip {
        None => pack_plain(src, cid, name, packing, out, progress),
        Some(level) => {
            let mut gzip = GzEncoder::new(out, Compression::new(level.min(9)));
            pack_plain(src, cid, name, packing, &mut gzip, progress)?;
            gzip.finish().map(drop).map_err(failed)
        }
    }
}

/// [`pack`] into a new file at `target`, which is either complete or absent at the end.
pub fn pack_to_file(
    src: &dyn BlockSource,
    cid: &Cid,
    name: &str,
    packing: Packing,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ReadError> {
    if std::fs::symlink_metadata(target).is_ok() {
        return Err(ReadError::Exists(target.to_owned()));
    }
    let partial = Partial::beside(target)?;
    let written = || {
        let mut file = io::BufWriter::new(std::fs::File::create_new(&partial.path).map_err(failed)?);
        pack(src, cid, name, packing, &mut file, progress)?;
        file.into_inner().map(drop).map_err(|error| failed(error.into_error()))
    };
    let mut written = written;
    written().map_err(|error| match error {
        ReadError::Write { source, .. } => ReadError::Write { path: target.to_owned(), source },
        other => other,
    })?;
    partial.rename(target)
}

fn pack_plain(
    src: &dyn BlockSource,
    cid: &Cid,
    name: &str,
    packing: Packing,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ReadError> {
    if packing.tar {
        let mut archive =
            Archive { builder: Builder::new(out), base: PathBuf::from(name), progress, written: 0 };
        visit_tree(src, cid, packing.outward, &mut archive)?;
        return archive.builder.finish().map_err(failed);
    }
    let mut reader = FileReader::open(src, cid)?;
    let mut written = 0;
    while let Some(bytes) = reader.next_bytes()? {
        out.write_all(&bytes).map_err(failed)?;
        written += bytes.len() as u64;
        progress(written);
    }
    Ok(())
}

struct Archive<'a> {
    builder: Builder<&'a mut dyn Write>,
    /// The name that the root has.
    base: PathBuf,
    progress: &'a mut dyn FnMut(u64),
    written: u64,
}

impl Archive<'_> {
    fn header(kind: EntryType, size: u64, mode: u32, metadata: &Metadata) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(metadata.mode.map_or(mode, |mode| mode & RESTORED_MODE));
        let seconds = metadata.mtime.and_then(|mtime| mtime.seconds).unwrap_or(0);
        // Before 1970 there is no time in this format.
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        header
    }

    fn at(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.base.clone() } else { self.base.join(path) }
    }
}

impl Visit for Archive<'_> {
    fn directory(&mut self, path: &Path, metadata: &Metadata) -> Result<(), ReadError> {
        let mut header = Self::header(EntryType::Directory, 0, DIRECTORY_MODE, metadata);
        let path = self.at(path);
        self.builder.append_data(&mut header, path, io::empty()).map_err(failed)
    }

    fn file(
        &mut self,
        path: &Path,
        content: FileReader<&dyn BlockSource>,
        metadata: &Metadata,
    ) -> Result<(), ReadError> {
        let size = content.size();
        let mut header = Self::header(EntryType::Regular, size, FILE_MODE, metadata);
        let path = self.at(path);
        self.builder.append_data(&mut header, path, content).map_err(failed)?;
        self.written += size;
        (self.progress)(self.written);
        Ok(())
    }

    fn symlink(&mut self, path: &Path, target: &[u8], metadata: &Metadata) -> Result<(), ReadError> {
        use std::os::unix::ffi::OsStrExt;
        let mut header = Self::header(EntryType::Symlink, 0, LINK_MODE, metadata);
        let target = Path::new(std::ffi::OsStr::from_bytes(target));
        let path = self.at(path);
        self.builder.append_link(&mut header, path, target).map_err(failed)
    }
}

/// A failure of the stream; one of the blocks that is read comes through it as itself.
fn failed(error: io::Error) -> ReadError {
    match error.downcast::<ReadError>() {
        Ok(error) => error,
        Err(source) => ReadError::Write { path: PathBuf::from("the archive"), source },
    }
}
