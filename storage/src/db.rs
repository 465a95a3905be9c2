//! The typed state database.
