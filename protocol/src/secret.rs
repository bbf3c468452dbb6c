//! Text that must not reach a log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A password, a private key: works like the value it holds, except that `Debug` prints `***`.
///
/// Serde is transparent, because secrets do travel; the code that writes them says [`Secret::expose`] or sends them.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Hides a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for the one place that needs it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T: FromStr> FromStr for Secret<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_hides_in_debug_output_and_travels_through_serde() {
        let secret = Secret::new("Xa9".to_owned());
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#""Xa9""#);
        assert_eq!(
            serde_json::from_str::<Secret<String>>(r#""Xa9""#).unwrap().expose(),
            "Xa9"
        );
    }
}
