//! `rustls` refuses to guess its crypto provider; we choose `ring`, once, here.

/// Makes `ring` the provider of every TLS connection of this process. The first line of every `main` that opens TLS, and
/// of every test that does; calling it again changes nothing.
pub fn install() {
    // The only failure is "a provider is already installed", and then it is ours.
    rustls::crypto::ring::default_provider().install_default().ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_is_fine() {
        install();
        install();
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }
}
