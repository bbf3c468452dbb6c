use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

use crate::checksum::{Algorithm, Checksum};

/// A digest of bytes as they come.
pub struct Digest {
    algorithm: Algorithm,
    state: State,
}

/// `sha2` finds SHA extensions and AVX2 at run time; it was measured to be as fast as ring.
enum State {
    Md5(Md5),
    Sha1(Sha1),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Digest {
    /// Of no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Md5 => State::Md5(Md5::new()),
            Algorithm::Sha1 => State::Sha1(Sha1::new()),
            Algorithm::Sha224 => State::Sha224(Sha224::new()),
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha384 => State::Sha384(Sha384::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        };
        Self { algorithm, state }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Md5(state) => state.update(bytes),
            State::Sha1(state) => state.update(bytes),
            State::Sha224(state) => state.update(bytes),
            State::Sha256(state) => state.update(bytes),
            State::Sha384(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Of all bytes taken.
    pub fn finish(self) -> Checksum {
        match self.state {
            State::Md5(state) => Checksum::of(self.algorithm, &state.finalize()),
            State::Sha1(state) => Checksum::of(self.algorithm, &state.finalize()),
            State::Sha224(state) => Checksum::of(self.algorithm, &state.finalize()),
            State::Sha256(state) => Checksum::of(self.algorithm, &state.finalize()),
            State::Sha384(state) => Checksum::of(self.algorithm, &state.finalize()),
            State::Sha512(state) => Checksum::of(self.algorithm, &state.finalize()),
        }
    }
}
