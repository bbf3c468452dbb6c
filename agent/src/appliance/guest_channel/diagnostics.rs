//! All that helps to find a fault, in pieces that fit into lines.

/// Bytes in one piece: as base64, with all around it, less than a line may have.
pub(super) const PIECE: usize = 16 * 1024;
