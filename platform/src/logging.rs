//! Log lines on standard error, in one of three shapes: for a person, for the journal, for programs.
//!
//! | Variable | Values | Default |
//! |---|---|---|
//! | `SYSVM_LOG`, else `RUST_LOG` | a level (`debug`), or levels by module (`info,agent::link=trace`) | `info`; `warn` for commands that answer a person |
//! | `SYSVM_LOG_FORMAT` | `text`, or `json`: one object per line | `text` |

use std::env;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal};
use std::iter::successors;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber, level_filters::LevelFilter, warn};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, layer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

/// Starts logging as the environment asks for. A setting that makes no sense is reported as a warning and replaced by its
/// default: nobody wants a daemon that does not start because of its log. Calling it again changes nothing.
pub fn init() {
    start("info");
}

/// Likewise, with warnings and errors only as the default: for commands whose answer a person reads.
pub fn init_quietly() {
    start("warn");
}

fn start(level: &str) {
    let settings = Settings::read(level, |name| env::var(name).ok());
    let layer = layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text if is_read_by_journal() => layer.event_format(ForJournal).boxed(),
        LogFormat::Text => layer.compact().boxed(),
    };
    let is_first = tracing_subscriber::registry()
        .with(layer.with_filter(settings.filter))
        .try_init()
        .is_ok();
    for Problem {
        variable,
        value,
        expected,
    } in settings.problems.into_iter().filter(|_| is_first)
    {
        warn!(variable, value, expected, "Log setting ignored, the default is used");
    }
}

/// An error and its causes on one line, `: ` between them: for an error type of ours what `{:#}` is for `anyhow::Error`.
pub fn chain<'a>(error: &'a (dyn Error + 'a)) -> impl fmt::Display + 'a {
    fmt::from_fn(move |f| {
        write!(f, "{error}")?;
        successors(error.source(), |cause| (*cause).source()).try_for_each(|cause| write!(f, ": {cause}"))
    })
}

struct Settings {
    filter: EnvFilter,
    format: LogFormat,
    problems: Vec<Problem>,
}

#[derive(PartialEq, Eq, Debug)]
enum LogFormat {
    Text,
    Json,
}

#[derive(PartialEq, Eq, Debug)]
struct Problem {
    variable: &'static str,
    value: String,
    expected: &'static str,
}

impl Settings {
    fn read(level: &str, var: impl Fn(&str) -> Option<String>) -> Self {
        let mut problems = Vec::new();
        let set = |variable| {
            var(variable)
                .filter(|value| !value.trim().is_empty())
                .map(|value| (variable, value))
        };

        let filter = set("SYSVM_LOG")
            .or_else(|| set("RUST_LOG"))
            .and_then(|(variable, value)| {
                let filter = parse_filter(&value);
                if filter.is_none() {
                    problems.push(Problem {
                        variable,
                        value,
                        expected: "such as `debug` or `info,agent::link=trace`",
                    });
                }
                filter
            });
        let format = match set("SYSVM_LOG_FORMAT") {
            Some((_, value)) if value == "json" => LogFormat::Json,
            Some((variable, value)) if value != "text" => {
                problems.push(Problem {
                    variable,
                    value,
                    expected: "`text` or `json`",
                });
                LogFormat::Text
            }
            _ => LogFormat::Text,
        };
        Self {
            filter: filter.unwrap_or_else(|| EnvFilter::new(level)),
            format,
            problems,
        }
    }
}

/// `EnvFilter` takes a misspelt level (`degub`) for the name of a module and then shows nothing else; we refuse it.
fn parse_filter(text: &str) -> Option<EnvFilter> {
    let is_clear = |word: &str| word.contains(['=', '[', ']', '}']) || word.trim().parse::<LevelFilter>().is_ok();
    EnvFilter::try_new(text).ok().filter(|_| text.split(',').all(is_clear))
}

/// systemd.exec(5), `$JOURNAL_STREAM`: the device and inode of the standard error it gave us. Compared, because a child
/// inherits the variable even when its output goes elsewhere.
fn is_read_by_journal() -> bool {
    let ours = fstat(io::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    env::var("JOURNAL_STREAM").is_ok_and(|journal| ours == Ok(journal))
}

/// The journal has its own clock, and takes each line's priority from a prefix: sd-daemon(3). `journalctl -p warning`
/// then works.
struct ForJournal;

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        Format::default()
            .compact()
            .without_time()
            .with_ansi(false)
            .format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> (String, LogFormat, Vec<Problem>) {
        let var = |wanted: &str| {
            vars.iter()
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| (*value).to_owned())
        };
        let settings = Settings::read("info", var);
        (settings.filter.to_string(), settings.format, settings.problems)
    }

    #[test]
    fn without_settings_the_level_is_info() {
        assert_eq!(read(&[]), ("info".into(), LogFormat::Text, vec![]));
        assert_eq!(read(&[("SYSVM_LOG", "")]), ("info".into(), LogFormat::Text, vec![]));
    }

    #[test]
    fn our_variable_goes_before_the_general_one() {
        assert_eq!(read(&[("RUST_LOG", "warn")]).0, "warn");
        assert_eq!(
            read(&[("RUST_LOG", "warn"), ("SYSVM_LOG", "agent=trace,debug")]).0,
            "agent=trace,debug"
        );
    }

    #[test]
    fn nonsense_is_reported_and_the_default_is_used() {
        for value in ["degub", "agent=loud", "a=b=c"] {
            let (filter, _, problems) = read(&[("SYSVM_LOG", value)]);
            assert_eq!(filter, "info", "{value}");
            let expected = "such as `debug` or `info,agent::link=trace`";
            assert_eq!(
                problems,
                [Problem {
                    variable: "SYSVM_LOG",
                    value: value.into(),
                    expected
                }]
            );
        }
        let (_, format, problems) = read(&[("SYSVM_LOG_FORMAT", "xml")]);
        assert_eq!((format, problems.len()), (LogFormat::Text, 1));
        assert_eq!(read(&[("SYSVM_LOG_FORMAT", "json")]).1, LogFormat::Json);
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the door")]
        struct Door(#[source] io::Error);
        assert_eq!(
            chain(&Door(io::Error::other("no key"))).to_string(),
            "cannot open the door: no key"
        );
    }
}
