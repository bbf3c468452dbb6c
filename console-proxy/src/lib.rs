//! Console proxy.
