//! Writing CARv1.

use std::io::Write;

use cid::Cid;

use super::{CarError, HeaderV1};
use crate::BlockSource;
use crate::dagpb::put_varint;
use crate::read::{ReadError, walk};

/// Writes a CARv1 as a stream; nothing of it is kept in memory.
#[derive(Debug)]
pub struct CarWriter<W> {
    out: W,
    written: u64,
}

impl<W: Write> CarWriter<W> {
    /// Begins a CAR for the DAGs at `roots`.
    pub fn new(out: W, roots: &[Cid]) -> Result<CarWriter<W>, CarError> {
        let header = HeaderV1 { roots: Some(roots.to_vec()), version: 1 };
        let header = serde_ipld_dagcbor::to_vec(&header)
            .map_err(|error| CarError::Write(std::io::Error::other(error)))?;
        let mut writer = CarWriter { out, written: 0 };
        writer.section(&[], &header)?;
        Ok(writer)
    }

    /// Appends a block. The caller vouches that `data` hashes to `cid` and gives each block once.
    pub fn put(&mut self, cid: &Cid, data: &[u8]) -> Result<(), CarError> {
        self.section(&cid.to_bytes(), data)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Ends the CAR and gives the target back.
    pub fn finish(mut self) -> Result<W, CarError> {
        self.out.flush().map_err(CarError::Write)?;
        Ok(self.out)
    }

    fn section(&mut self, cid: &[u8], data: &[u8]) -> Result<(), CarError> {
        let mut head = Vec::with_capacity(10 + cid.len());
        put_varint(&mut head, (cid.len() + data.len()) as u64);
        head.extend_from_slice(cid);
        self.out.write_all(&head).map_err(CarError::Write)?;
        self.out.write_all(data).map_err(CarError::Write)?;
        self.written += (head.len() + data.len()) as u64;
        Ok(())
    }
}

/// Writes the DAG at `root` as a CARv1 and answers its length in bytes. Blocks come once each, parents before children,
/// in the order of their links; those that an identity hash carries are in the CIDs and get no section. `progress` gets
/// the bytes written so far.
///
/// # Errors
/// [`ReadError::Missing`] inside [`CarError::Dag`] when a block is not here; what was written until then is no whole CAR.
pub fn export(
    src: &dyn BlockSource,
    root: &Cid,
    out: impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, CarError> {
    let mut writer = CarWriter::new(out, &[*root])?;
    for block in walk(src, root) {
        let (cid, _) = block?;
        let data = src.get(&cid)?.ok_or(ReadError::Missing(cid))?;
        writer.put(&cid, &data)?;
        progress(writer.written());
    }
    let written = writer.written();
    writer.finish()?;
    Ok(written)
}
