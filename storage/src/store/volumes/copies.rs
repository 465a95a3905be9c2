//! Blocks that are in two directories: which copy may go, and what the other must know by then.
//!
//! Only emptying a directory makes copies ([`super::drain`]), and a directory that was missing while the store went on may
//! bring some back. All rules about them are here:
//!
//! * A copy may be deleted only while another, in a directory that takes blocks, [covers](Meta::covers) it.
//! * What is known of a block is written to every copy ([`Changes::put_meta`]), so that it does not matter which one
//!   somebody finds first, or which one goes.
//! * A collection deletes a block only if no copy has a stamp that protects it (`Store::forget`).

use super::super::rocks::{self, Counter, Meta};
use super::directories::DirectoryId;
use super::{Changes, Place, Volumes};
use crate::Class;
use crate::db::DbError;

impl Meta {
    /// Whether nothing is lost if a copy that has `other` goes and the one that has this stays.
    pub fn covers(&self, other: &Meta) -> bool {
        self.generation >= other.generation
            && (self.class == other.class || self.class != Class::Cache)
            && (!self.quarantined || other.quarantined)
    }

    /// What a copy must know to cover another beside itself; whether it is damaged stays its own affair.
    pub fn joined(self, other: &Meta) -> Meta {
        let class = if self.class == Class::Cache { other.class } else { self.class };
        Meta { class, generation: self.generation.max(other.generation), ..self }
    }
}

impl Volumes {
    /// Every place that has a block; those that take blocks first.
    pub fn copies(&self, key: &[u8]) -> Result<Vec<(Place, Meta)>, DbError> {
        let mut copies = Vec::new();
        for (n, volume) in self.all.iter().enumerate() {
            copies.extend(volume.db.meta(key)?.map(|meta| (Place(n), meta)));
        }
        Ok(copies)
    }

    /// The best copy of a block in a directory that takes blocks and is not `id`.
    pub fn elsewhere(&self, id: DirectoryId, key: &[u8]) -> Result<Option<(Place, Meta)>, DbError> {
        let mut copies = self.copies(key)?;
        copies.retain(|(place, _)| self.at(*place).id != id && self.at(*place).takes_blocks());
        Ok(copies.into_iter().min_by_key(|(_, meta)| meta.quarantined))
    }

    /// Whether a block may be in two directories.
    fn has_copies(&self) -> bool {
        self.all.last().is_some_and(|volume| !volume.takes_blocks())
    }
}

impl Changes<'_> {
    /// Writes what is known of a block, `meta` at a place; stamp and class also at any other that has it.
    pub fn put_meta(&mut self, place: Place, key: &[u8], meta: Meta) -> Result<(), DbError> {
        self.at(place).put_meta(key, meta);
        if !self.volumes.has_copies() {
            return Ok(());
        }
        for (other, theirs) in self.volumes.copies(key)? {
            let new = theirs.joined(&meta);
            if other == place || new == theirs {
                continue;
            }
            self.moves_books |= new.class != theirs.class;
            let part = self.at(other);
            if new.class != theirs.class {
                book(part, theirs, -1);
                book(part, new, 1);
            }
            part.put_meta(key, new);
        }
        Ok(())
    }
}

/// Puts a block on the books of a database, or takes it off.
pub(in super::super) fn book(changes: &mut rocks::Changes<'_>, meta: Meta, sign: i64) {
    changes.add(Counter::Blocks(meta.class), sign);
    changes.add(Counter::Bytes(meta.class), sign * i64::from(meta.size));
    changes.add(Counter::Quarantined, sign * i64::from(meta.quarantined));
}
