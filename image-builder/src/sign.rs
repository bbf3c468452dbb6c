//! Signatures in minisign's format: made here, checked with `minisign -V` or here, and the other way round.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign::{KeyPair, PError, PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};
use platform::files::{self, FileError};

use crate::cache::hex;

/// What a signature's file is called: that of what is signed, and this.
pub const SUFFIX: &str = ".minisig";
/// Bytes of a key or signature file; real ones have some 350.
const MAX_FILE: u64 = 64 << 10;
/// The text form of a public key (`RW…`).
const PUBLIC_KEY_LENGTH: usize = 56;
/// How the base64 of a secret key begins that has no password: `Ed`, two zeros, `B2`.
const NO_PASSWORD: &str = "RWQAAEIy";

/// How a new secret key is protected.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// By its file's mode alone.
    None,
    /// By this.
    Given(String),
    /// By what a person types on the terminal.
    Ask,
}

/// Why something was not signed, or a signature is not good.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// There is no signature.
    #[error("{0} is not signed: there is no {0}.minisig")]
    NotSigned(PathBuf),
    /// A key is never overwritten.
    #[error("{0} exists already; a lost key cannot be made again, so name another file or move it away")]
    Exists(PathBuf),
    /// Not made by minisign, or damaged.
    #[error("{path} is no {what} in minisign's format")]
    Format {
        /// The file.
        path: PathBuf,
        /// `public key`, `secret key`, `signature`.
        what: &'static str,
        /// Why.
        source: PError,
    },
    /// The password does not open the key.
    #[error("the password does not open {path}")]
    Password {
        /// The key.
        path: PathBuf,
        /// What minisign says.
        source: PError,
    },
    /// The comment would end too early.
    #[error("a trusted comment is one line")]
    Comment,
    /// Signed, but by somebody else.
    #[error("{file} is signed with the key {signed_with}, not with {expected}")]
    OtherKey {
        /// The file.
        file: PathBuf,
        /// The id of the key that signed it.
        signed_with: String,
        /// The id of the key it was checked with.
        expected: String,
    },
    /// The old kind of signature, which reads the whole file into memory.
    #[error("the signature of {0} is of the old kind (not prehashed), which is not accepted; sign it again")]
    Legacy(PathBuf),
    /// It is not what was signed.
    #[error("{0} is not what was signed: it, or its signature, has changed since")]
    Changed(PathBuf),
    /// What the signature says of itself was changed.
    #[error("the trusted comment in the signature of {0} has changed since it was signed")]
    CommentChanged(PathBuf),
    /// The signature was made for a file of another name.
    #[error("{file} was signed under the name {signed}; was it renamed, or put in place of another?")]
    OtherName {
        /// The file.
        file: PathBuf,
        /// The name in the trusted comment.
        signed: String,
    },
    /// Something else failed on the way.
    #[error("cannot sign or check {path}")]
    Other {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PError,
    },
}

/// Makes a key pair: `secret` with mode 0600, `public` for everybody. Answers the public key in its text form.
///
/// # Errors
/// One of the files exists, or cannot be written.
pub fn new_key(secret: &Path, public: &Path, password: Password) -> Result<String, SignError> {
    for path in [secret, public] {
        if path.symlink_metadata().is_ok() {
            return Err(SignError::Exists(path.to_owned()));
        }
    }
    let failed = |source| SignError::Other {
        path: secret.to_owned(),
        source,
    };
    let pair = match password {
        Password::None => KeyPair::generate_unencrypted_keypair(),
        Password::Given(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        Password::Ask => KeyPair::generate_encrypted_keypair(None),
    };
    let pair = pair.map_err(failed)?;
    let id = key_id(pair.pk.keynum());
    let comment = format!("minisign secret key {id}");
    let secret_text = pair.sk.to_box(Some(&comment)).map_err(failed)?.into_string();
    let public_text = format!("untrusted comment: minisign public key {id}\n{}\n", pair.pk.to_base64());
    let _ = files::replace(secret, secret_text, 0o600)?;
    let _ = files::replace(public, public_text, 0o644)?;
    Ok(pair.pk.to_base64())
}

/// Reads a secret key. If it has a password and none is given, the terminal is asked.
///
/// # Errors
/// It is none, or the password is wrong.
pub fn secret_key(path: &Path, password: Option<String>) -> Result<SecretKey, SignError> {
    let text = read(path)?;
    let format = |source| SignError::Format {
        path: path.to_owned(),
        what: "secret key",
        source,
    };
    if let Some(line) = text.lines().nth(1).filter(|line| line.starts_with(NO_PASSWORD)) {
        // Not as the library does it: it wants a checksum in there, which the real minisign leaves out.
        let bytes = STANDARD
            .decode(line.trim())
            .map_err(|error| format(io::Error::other(error).into()))?;
        return SecretKey::from_bytes(&bytes).map_err(format);
    }
    let key = SecretKeyBox::from_string(&text).map_err(format)?;
    key.into_secret_key(password).map_err(|source| match source.kind() {
        minisign::ErrorKind::Verify => SignError::Password {
            path: path.to_owned(),
            source,
        },
        _ => format(source),
    })
}

/// Reads a public key: a file, or the key itself (`RW…`, 56 letters) as minisign's `-P` takes it.
///
/// # Errors
/// It is none.
pub fn public_key(text_or_path: &str) -> Result<PublicKey, SignError> {
    let path = Path::new(text_or_path);
    let format = |source| SignError::Format {
        path: path.to_owned(),
        what: "public key",
        source,
    };
    if text_or_path.len() == PUBLIC_KEY_LENGTH && text_or_path.starts_with("RW") {
        return PublicKey::from_base64(text_or_path).map_err(format);
    }
    let text = read(path)?;
    PublicKeyBox::from_string(&text)
        .and_then(PublicKeyBox::into_public_key)
        .map_err(format)
}

/// Signs a file, and writes the signature beside it. The trusted comment has the time, the file's name and `comment`.
///
/// # Errors
/// The file cannot be read, or the signature not be written.
pub fn sign(file: &Path, key: &SecretKey, comment: Option<&str>) -> Result<PathBuf, SignError> {
    if comment.is_some_and(|comment| comment.contains(char::is_control)) {
        return Err(SignError::Comment);
    }
    let input = open(file)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let mut trusted = format!("timestamp:{now}\tfile:{}\thashed", name_of(file));
    if let Some(comment) = comment {
        trusted.push('\t');
        trusted.push_str(comment);
    }
    let signature = signed(input, key, &trusted).map_err(|source| SignError::Other {
        path: file.to_owned(),
        source,
    })?;
    let path = signature_path(file);
    let _ = files::replace(&path, signature, 0o644)?;
    Ok(path)
}

/// The signature of some bytes, with a trusted comment of the caller's.
///
/// # Errors
/// The key is damaged.
pub fn signature_of(bytes: &[u8], key: &SecretKey, trusted: &str) -> Result<String, SignError> {
    signed(bytes, key, trusted).map_err(|source| SignError::Other {
        path: "what is in memory".into(),
        source,
    })
}

fn signed(input: impl Read, key: &SecretKey, trusted: &str) -> Result<String, PError> {
    let public = PublicKey::from_secret_key(key)?;
    let untrusted = format!("signature from minisign secret key {}", key_id(public.keynum()));
    // With the public key it checks what it made: a damaged secret key must not give signatures.
    minisign::sign(Some(&public), key, input, Some(trusted), Some(&untrusted)).map(SignatureBox::into_string)
}

/// Checks a file against the signature beside it; answers the trusted comment.
///
/// # Errors
/// It is not signed, by another key, has changed, or bears another name than when it was signed.
pub fn check(file: &Path, key: &PublicKey) -> Result<String, SignError> {
    let input = open(file)?;
    let path = signature_path(file);
    let text = match read(&path) {
        Err(SignError::Missing(_)) => return Err(SignError::NotSigned(file.to_owned())),
        text => text?,
    };
    let signature = SignatureBox::from_string(&text).map_err(|source| SignError::Format {
        path,
        what: "signature",
        source,
    })?;
    if signature.keynum() != key.keynum() {
        return Err(SignError::OtherKey {
            file: file.to_owned(),
            signed_with: key_id(signature.keynum()),
            expected: key_id(key.keynum()),
        });
    }
    if !signature.is_prehashed() {
        return Err(SignError::Legacy(file.to_owned()));
    }
    let other = |source| SignError::Other {
        path: file.to_owned(),
        source,
    };
    match minisign::verify(key, &signature, input, true, false, false) {
        Ok(()) => {}
        // The library checks the file first, then the comment, and has one kind of error for both.
        Err(error) if error.to_string().starts_with("Comment") => {
            return Err(SignError::CommentChanged(file.to_owned()));
        }
        Err(error) if matches!(error.kind(), minisign::ErrorKind::Verify) => {
            return Err(SignError::Changed(file.to_owned()));
        }
        Err(error) => return Err(other(error)),
    }
    let comment = signature.trusted_comment().map_err(other)?;
    let signed = comment.split('\t').find_map(|word| word.strip_prefix("file:"));
    match signed {
        Some(signed) if signed != name_of(file) => Err(SignError::OtherName {
            file: file.to_owned(),
            signed: signed.to_owned(),
        }),
        _ => Ok(comment),
    }
}

/// Where the signature of a file is.
pub fn signature_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// A key's number as minisign shows it.
fn key_id(number: &[u8]) -> String {
    let most_significant_first: Vec<_> = number.iter().rev().copied().collect();
    hex(most_significant_first).to_uppercase()
}

fn name_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.replace(char::is_control, "?")
}

fn open(file: &Path) -> Result<File, SignError> {
    File::open(file).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SignError::Missing(file.to_owned()),
        _ => SignError::Other {
            path: file.to_owned(),
            source: source.into(),
        },
    })
}

fn read(path: &Path) -> Result<String, SignError> {
    let bytes = files::read_limited(path, MAX_FILE)?.ok_or_else(|| SignError::Missing(path.to_owned()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use platform::exec::Cmd;
    use platform::files::replace;

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        file: PathBuf,
        secret: PathBuf,
        public: PathBuf,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let [file, secret, public] = ["SHA256SUMS", "image.key", "image.pub"].map(|name| dir.path().join(name));
            let _ = replace(&file, "digests", 0o644).unwrap();
            new_key(&secret, &public, Password::None).unwrap();
            Self {
                dir,
                file,
                secret,
                public,
            }
        }

        fn signed() -> Self {
            let fixture = Self::new();
            sign(&fixture.file, &fixture.key(), Some("made by a test")).unwrap();
            fixture
        }

        fn key(&self) -> SecretKey {
            secret_key(&self.secret, None).unwrap()
        }

        fn check(&self) -> Result<String, String> {
            let key = public_key(self.public.to_str().unwrap()).unwrap();
            check(&self.file, &key).map_err(|error| {
                let directory = format!("{}/", self.dir.path().display());
                error.to_string().replace(&directory, "")
            })
        }

        fn edit_signature(&self, edit: impl FnOnce(String) -> String) {
            let path = signature_path(&self.file);
            let text = fs::read_to_string(&path).unwrap();
            let _ = replace(path, edit(text), 0o644).unwrap();
        }
    }

    #[test]
    fn what_is_signed_is_good_until_it_changes() {
        let fixture = Fixture::signed();
        let comment = fixture.check().unwrap();
        assert!(comment.starts_with("timestamp:"), "{comment}");
        assert!(
            comment.ends_with("\tfile:SHA256SUMS\thashed\tmade by a test"),
            "{comment}"
        );

        let _ = replace(&fixture.file, "digestt", 0o644).unwrap();
        assert_eq!(
            fixture.check().unwrap_err(),
            "SHA256SUMS is not what was signed: it, or its signature, has changed since"
        );
    }

    #[test]
    fn a_changed_comment_a_wrong_key_and_a_missing_signature_are_told_apart() {
        let fixture = Fixture::signed();
        fixture.edit_signature(|text| text.replace("made by a test", "made by a fool"));
        assert_eq!(
            fixture.check().unwrap_err(),
            "the trusted comment in the signature of SHA256SUMS has changed since it was signed"
        );

        let other = Fixture::new();
        sign(&fixture.file, &other.key(), None).unwrap();
        let error = fixture.check().unwrap_err();
        assert!(error.starts_with("SHA256SUMS is signed with the key "), "{error}");

        fixture.edit_signature(|_| "nothing".to_owned());
        assert_eq!(
            fixture.check().unwrap_err(),
            "SHA256SUMS.minisig is no signature in minisign's format"
        );

        fs::remove_file(signature_path(&fixture.file)).unwrap();
        assert_eq!(
            fixture.check().unwrap_err(),
            "SHA256SUMS is not signed: there is no SHA256SUMS.minisig"
        );
    }

    #[test]
    fn a_signature_does_not_follow_to_another_name() {
        let mut fixture = Fixture::signed();
        let renamed = fixture.dir.path().join("old");
        fs::rename(&fixture.file, &renamed).unwrap();
        fs::rename(signature_path(&fixture.file), signature_path(&renamed)).unwrap();
        fixture.file = renamed;
        assert_eq!(
            fixture.check().unwrap_err(),
            "old was signed under the name SHA256SUMS; was it renamed, or put in place of another?"
        );
    }

    #[test]
    fn a_key_is_secret_and_never_overwritten() {
        let fixture = Fixture::new();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&fixture.secret), 0o600);
        let error = new_key(&fixture.secret, &fixture.dir.path().join("new"), Password::None).unwrap_err();
        assert!(matches!(error, SignError::Exists(_)), "{error}");
        assert!(secret_key(&fixture.public, None).is_err());
    }

    #[test]
    fn a_password_opens_its_key_and_no_other_does() {
        let fixture = Fixture::new();
        let [secret, public] = ["p.key", "p.pub"].map(|name| fixture.dir.path().join(name));
        let text = new_key(&secret, &public, Password::Given("right".to_owned())).unwrap();
        let error = secret_key(&secret, Some("wrong".to_owned())).map(|_| ());
        assert!(matches!(error, Err(SignError::Password { .. })), "{error:?}");

        let key = secret_key(&secret, Some("right".to_owned())).unwrap();
        sign(&fixture.file, &key, None).unwrap();
        check(&fixture.file, &public_key(&text).unwrap()).unwrap();
        check(&fixture.file, &public_key(public.to_str().unwrap()).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn the_real_minisign_accepts_ours_and_we_accept_its() {
        let fixture = Fixture::signed();
        let minisign = |args: &[&str]| Cmd::new("minisign").args(args);
        let verify = minisign(&["-V", "-H", "-p"])
            .arg(&fixture.public)
            .arg("-m")
            .arg(&fixture.file);
        verify.run().await.unwrap();

        let [secret, public] = ["real.key", "real.pub"].map(|name| fixture.dir.path().join(name));
        let generate = minisign(&["-G", "-W", "-p"]).arg(&public).arg("-s").arg(&secret);
        generate.run().await.unwrap();
        let sign_it = minisign(&["-S", "-t", "file:SHA256SUMS", "-s"])
            .arg(&secret)
            .arg("-m")
            .arg(&fixture.file);
        sign_it.run().await.unwrap();
        let key = public_key(public.to_str().unwrap()).unwrap();
        assert_eq!(check(&fixture.file, &key).unwrap(), "file:SHA256SUMS");
        // Our key files are minisign's, and its are ours.
        sign(&fixture.file, &secret_key(&secret, None).unwrap(), None).unwrap();
        minisign(&["-V", "-p"])
            .arg(&public)
            .arg("-m")
            .arg(&fixture.file)
            .run()
            .await
            .unwrap();
        minisign(&["-S", "-s"])
            .arg(&fixture.secret)
            .arg("-m")
            .arg(&fixture.file)
            .run()
            .await
            .unwrap();
        fixture.check().unwrap();

        let _ = replace(&fixture.file, "changed", 0o644).unwrap();
        assert!(verify.run().await.is_err());
    }
}
