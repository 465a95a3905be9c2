//! Ordered lists of the blocks an agreement covers.
