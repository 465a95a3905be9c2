//! The dag-pb codec and the children of a block.
