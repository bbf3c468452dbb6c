//! Secondary storage.
