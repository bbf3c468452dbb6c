//! Single-letter options as shell scripts read them.

/// An option and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opt<'a> {
    pub(super) letter: char,
    pub(super) value: &'a str,
}

/// Reads `-g -l 192.0.2.1`. `known` is as for getopts: a letter with a colon takes a value. What is not an option is ignored,
/// as the original scripts do.
pub(super) fn read<'a>(args: &'a [String], known: &str) -> Result<Vec<Opt<'a>>, String> {
    let mut options = Vec::new();
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        let Some(mut letters) = arg.strip_prefix('-') else {
            continue;
        };
        while let Some(letter) = letters.chars().next() {
            letters = &letters[letter.len_utf8()..];
            let after = known.split_once(letter).map(|(_, after)| after);
            let Some(after) = after.filter(|_| letter != ':') else {
                return Err(format!("-{letter} is no option here"));
            };
            let mut value = "";
            if after.starts_with(':') {
                value = if letters.is_empty() {
                    args.next().ok_or_else(|| format!("-{letter} needs a value"))?
                } else {
                    letters
                };
                letters = "";
            }
            options.push(Opt { letter, value });
        }
    }
    Ok(options)
}

/// The value of an option, if it is there.
pub(super) fn value<'a>(options: &[Opt<'a>], letter: char) -> Option<&'a str> {
    options
        .iter()
        .find(|option| option.letter == letter)
        .map(|option| option.value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_may_be_apart_or_together() {
        for line in ["-g -l 192.0.2.1", "-gl 192.0.2.1", "-gl192.0.2.1", "x -g -l192.0.2.1 y"] {
            let args = words(line);
            let options = read(&args, "cgl:").unwrap();
            assert_eq!(
                (value(&options, 'g'), value(&options, 'l')),
                (Some(""), Some("192.0.2.1")),
                "{line}"
            );
        }
        assert_eq!(read(&words("-x"), "cg"), Err("-x is no option here".to_owned()));
        assert_eq!(read(&words("-:"), "c:g"), Err("-: is no option here".to_owned()));
        assert_eq!(read(&words("-l"), "cgl:"), Err("-l needs a value".to_owned()));
    }

    proptest! {
        #[test]
        fn noise_is_read_or_refused(args: Vec<String>) {
            let _read = read(&args, "cgrl:");
        }
    }
}
