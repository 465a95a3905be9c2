//! Reading CARv1 and CARv2 as a stream.

use std::io::{self, Read};

use bytes::Bytes;
use cid::Cid;

use super::{CarError, FULLY_INDEXED, Header, HeaderV1, MAX_CID, MAX_HEADER, V2_HEADER, V2_PRAGMA};
use crate::{BlockSink, MAX_BLOCK, hash};

/// Bytes skipped at a time: padding and index of a CARv2.
const SKIP: usize = 16 << 10;

/// Reads a CAR block by block; every block was checked against its CID.
///
/// Iterate until `None`: only then was the file whole. After an error it ends.
#[derive(Debug)]
pub struct CarReader<R> {
    input: R,
    /// Bytes consumed.
    offset: u64,
    header: Header,
    /// Where the payload ends and what follows; CARv1 ends with the file.
    end: Option<PayloadEnd>,
    last: Option<Cid>,
    done: bool,
}

/// The end of a CARv2's payload.
#[derive(Clone, Copy, Debug)]
struct PayloadEnd {
    offset: u64,
    has_index: bool,
}

impl<R: Read> CarReader<R> {
    /// Reads the header. `input` need not be buffered for speed if its reads are cheap: a handful is made for each block.
    pub fn new(input: R) -> Result<CarReader<R>, CarError> {
        let header = Header { version: 1, roots: Vec::new(), fully_indexed: false };
        let mut reader = CarReader { input, offset: 0, header, end: None, last: None, done: false };
        let (bytes, first) = reader.header_bytes()?;
        match first.version {
            1 => {}
            2 if bytes == V2_PRAGMA[1..] => return reader.version_2(),
            2 => {
                return Err(CarError::NotACar(
                    "the beginning of a CARv2 is not that of the specification".into(),
                ));
            }
            other => return Err(CarError::Version(other)),
        }
        reader.take_roots(first)?;
        Ok(reader)
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the file read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The header behind the pragma, and the CARv1 header at the beginning of the payload.
    fn version_2(mut self) -> Result<CarReader<R>, CarError> {
        let mut fixed = [0u8; V2_HEADER];
        self.fill(&mut fixed, "the CARv2 header")?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| fixed[at + byte]));
        let (data, size, index) = (number(16), number(24), number(32));
        let bad = |what: &str| Err(CarError::NotACar(format!("its CARv2 header {what}")));
        if data < self.offset {
            return bad("puts the data inside the header");
        }
        if size == 0 {
            return bad("says that there is no data: its writer did not finish it");
        }
        let Some(end) = data.checked_add(size) else { return bad("has a data size that no file can have") };
        if index != 0 && index < end {
            return bad("puts the index inside the data");
        }
        self.header.version = 2;
        self.header.fully_indexed = fixed[0] & FULLY_INDEXED != 0;
        self.pass_over(data - self.offset)?;
        self.end = Some(PayloadEnd { offset: end, has_index: index != 0 });
        let (_, inner) = self.header_bytes()?;
        if inner.version != 1 {
            return Err(CarError::Version(inner.version));
        }
        self.take_roots(inner)?;
        Ok(self)
    }

    fn take_roots(&mut self, header: HeaderV1) -> Result<(), CarError> {
        self.header.roots =
            header.roots.ok_or_else(|| CarError::NotACar("its header has no list of roots".into()))?;
        Ok(())
    }

    /// A CARv1 header: its bytes and what they say.
    fn header_bytes(&mut self) -> Result<(Vec<u8>, HeaderV1), CarError> {
        let not_a_car = |what: String| Err(CarError::NotACar(what));
        let size = match self.varint("the header") {
            Ok(Some(size)) => size,
            Ok(None) => return not_a_car("it is empty".into()),
            Err(CarError::BadSection { problem, .. }) => return not_a_car(problem),
            Err(error) => return Err(error),
        };
        if size == 0 {
            return not_a_car("it has a header of length 0".into());
        }
        if size > MAX_HEADER as u64 {
            return Err(CarError::HeaderTooLarge { size });
        }
        self.within_payload(size, "the header")?;
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes, "the header")?;
        match serde_ipld_dagcbor::from_slice(&bytes) {
            Ok(header) => Ok((bytes, header)),
            Err(error) => not_a_car(format!("its header does not decode: {error}")),
        }
    }

    /// The next section, or `None` at the end of the payload.
    fn section(&mut self) -> Result<Option<(Cid, Bytes)>, CarError> {
        if let Some(end) = self.end
            && self.offset == end.offset
        {
            self.after_payload(end)?;
            return Ok(None);
        }
        let start = self.offset;
        let Some(size) = self.varint("the length of a block")? else {
            // A CARv1 ends with the file, a CARv2 says where.
            return if self.end.is_none() { Ok(None) } else { Err(self.truncated("the data")) };
        };
        if size == 0 {
            return Err(self.bad(start, "a section of length 0"));
        }
        self.within_payload(size, "a block")?;
        let mut head = [0u8; MAX_CID];
        let head = &mut head[..size.min(MAX_CID as u64) as usize];
        self.fill(head, "a block")?;
        let mut rest = &head[..];
        let cid =
            Cid::read_bytes(&mut rest).map_err(|error| self.bad(start, &format!("its CID: {error}")))?;
        let cid_len = head.len() - rest.len();
        let data_size = size - cid_len as u64;
        if data_size > MAX_BLOCK as u64 {
            return Err(CarError::BlockTooLarge { cid, offset: start, size: data_size });
        }
        let mut data = Vec::with_capacity(data_size as usize);
        data.extend_from_slice(rest);
        let here = data.len();
        data.resize(data_size as usize, 0);
        self.fill(&mut data[here..], "a block")?;
        hash::verify(&cid, &data).map_err(|source| CarError::Block { offset: start, source })?;
        self.last = Some(cid);
        Ok(Some((cid, Bytes::from(data))))
    }

    /// Goes to the end of the file: over an index, or over nothing but padding.
    fn after_payload(&mut self, end: PayloadEnd) -> Result<(), CarError> {
        let mut buffer = [0u8; SKIP];
        loop {
            let read = self.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            let foreign = buffer[..read].iter().position(|byte| *byte != 0).filter(|_| !end.has_index);
            if let Some(at) = foreign {
                let offset = self.offset - (read - at) as u64;
                return Err(CarError::TrailingGarbage { offset, last: self.last });
            }
        }
    }

    /// Refuses what would reach over the end of a CARv2's payload.
    fn within_payload(&self, size: u64, what: &'static str) -> Result<(), CarError> {
        match self.end {
            Some(end) if end.offset.checked_sub(self.offset).is_none_or(|left| size > left) => {
                Err(self.bad(self.offset, &format!("{what} that goes over the end of the data")))
            }
            _ => Ok(()),
        }
    }

    fn bad(&self, offset: u64, problem: &str) -> CarError {
        CarError::BadSection { offset, problem: problem.to_owned(), last: self.last }
    }

    fn truncated(&self, inside: &'static str) -> CarError {
        CarError::Truncated { offset: self.offset, inside, last: self.last }
    }

    /// A minimal varint of at most 63 bits, or `None` if the file ends before it.
    fn varint(&mut self, what: &'static str) -> Result<Option<u64>, CarError> {
        let start = self.offset;
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let mut byte = [0u8; 1];
            if self.read(&mut byte)? == 0 {
                return if shift == 0 { Ok(None) } else { Err(self.truncated(what)) };
            }
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                if byte[0] == 0 && shift > 0 {
                    return Err(self.bad(start, "a length that is not written in its shortest form"));
                }
                return Ok(Some(value));
            }
        }
        Err(self.bad(start, "a length over 63 bits"))
    }

    /// Fills the buffer, or says inside what the file ended.
    fn fill(&mut self, mut buffer: &mut [u8], inside: &'static str) -> Result<(), CarError> {
        while !buffer.is_empty() {
            let read = self.read(buffer)?;
            if read == 0 {
                return Err(self.truncated(inside));
            }
            buffer = &mut buffer[read..];
        }
        Ok(())
    }

    fn pass_over(&mut self, mut bytes: u64) -> Result<(), CarError> {
        let mut buffer = [0u8; SKIP];
        while bytes > 0 {
            let part = bytes.min(SKIP as u64) as usize;
            self.fill(&mut buffer[..part], "the padding before the data")?;
            bytes -= part as u64;
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, CarError> {
        loop {
            match self.input.read(buffer) {
                Ok(read) => {
                    self.offset += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(CarError::Read { offset: self.offset, source }),
            }
        }
    }
}

impl<R: Read> Iterator for CarReader<R> {
    type Item = Result<(Cid, Bytes), CarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let section = self.section().transpose();
        self.done = !matches!(section, Some(Ok(_)));
        section
    }
}

/// What a CAR brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The roots of its header.
    pub roots: Vec<Cid>,
    /// Sections, repetitions included.
    pub blocks: u64,
    /// Their bytes, without CIDs and lengths.
    pub bytes: u64,
}

/// Puts every block of a CAR into `sink`, in the order of the file. Nothing is acknowledged here: that is for the owner
/// of the sink, once this has returned. `progress` gets the bytes of the file read so far.
pub fn import(
    input: impl Read,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported, CarError> {
    let mut reader = CarReader::new(io::BufReader::with_capacity(SKIP, input))?;
    let mut imported = Imported { roots: reader.header().roots.clone(), ..Imported::default() };
    while let Some(block) = reader.next() {
        let (cid, data) = block?;
        imported.blocks += 1;
        imported.bytes += data.len() as u64;
        sink.put(&cid, data)?;
        progress(reader.offset());
    }
    Ok(imported)
}
