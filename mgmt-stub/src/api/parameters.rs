//! What a call was told: checked against the table once, typed from then on (management.md §17.1).

use std::collections::{BTreeMap, HashMap};

use time::OffsetDateTime;
use tracing::debug;
use uuid::Uuid;

use super::command::{Command, Kind, Parameter, Run, optional};
use super::date;
use super::error::{ApiError, Code};
use super::form::Pair;

/// Of every list.
pub const OF_LISTS: &[Parameter] = &[
    optional("keyword", Kind::Text, "part of a name or another text of the rows"),
    optional("page", Kind::Number, "which page, from 1 on; with pagesize"),
    optional("pagesize", Kind::Number, "rows of a page; -1 is all"),
];
/// Of everything that belongs to an account.
pub const OF_OWNERS: &[Parameter] = &[
    optional(
        "account",
        Kind::Text,
        "name of the account it belongs to; with domainid",
    ),
    optional("domainid", Kind::Id, "domain of the account"),
    optional("projectid", Kind::Id, "a project; there are none here"),
    optional("listall", Kind::Flag, "also what belongs to other accounts"),
    optional("isrecursive", Kind::Flag, "also in the domains below"),
];
/// Of every call.
const OF_ALL: [&str; 8] = [
    "command",
    "response",
    "apikey",
    "signature",
    "signatureversion",
    "expires",
    "sessionkey",
    "listall",
];
/// Rows of a map, and words of a list.
const MAX_ELEMENTS: usize = 1000;

/// Parameters of one call.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    values: HashMap<&'static str, Given>,
}

#[derive(Clone, Debug, PartialEq)]
enum Given {
    Text(String),
    Id(Uuid),
    Flag(bool),
    Number(i64),
    Fraction(f64),
    Date(OffsetDateTime),
    List(Vec<String>),
    Ids(Vec<Uuid>),
    Map(Vec<BTreeMap<String, String>>),
}

/// All that a command takes.
pub fn all_of(command: &'static Command) -> impl Iterator<Item = &'static Parameter> {
    let of_lists: &[Parameter] = if matches!(command.run, Run::List(_)) {
        OF_LISTS
    } else {
        &[]
    };
    command.takes.iter().chain(of_lists)
}

impl Parameters {
    /// Checks what was sent; reports the first problem in the table's order. What the table does not know is ignored.
    ///
    /// # Errors
    /// 430: bad syntax of a map. 431: something is missing or is not what it should be.
    pub fn check(command: &'static Command, pairs: &[Pair]) -> Result<Self, ApiError> {
        let mut values = HashMap::new();
        for parameter in all_of(command) {
            let given = if parameter.kind == Kind::Map {
                map(parameter.name, pairs)?.map(Given::Map)
            } else {
                let pair = pairs.iter().find(|pair| pair.name.eq_ignore_ascii_case(parameter.name));
                let text = pair.map(|pair| pair.value.as_str()).filter(|text| !is_absent(text));
                text.map(|text| typed(parameter, text)).transpose()?.flatten()
            };
            match given {
                Some(given) => {
                    values.insert(parameter.name, given);
                }
                None if parameter.is_required => {
                    return Err(ApiError::parameter(format!(
                        "Unable to execute API command {} due to missing parameter {}",
                        command.name.to_lowercase(),
                        parameter.name
                    )));
                }
                None => {}
            }
        }
        for pair in pairs {
            let name = pair.name.split('[').next().unwrap_or_default();
            let is_known = |known: &str| known.eq_ignore_ascii_case(name);
            if !all_of(command).any(|parameter| is_known(parameter.name)) && !OF_ALL.iter().any(|known| is_known(known))
            {
                debug!(name, "Unknown parameter ignored");
            }
        }
        Ok(Self { values })
    }

    /// Of a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.values.get(name)? {
            Given::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Of an id.
    pub fn id(&self, name: &str) -> Option<Uuid> {
        match self.values.get(name)? {
            Given::Id(id) => Some(*id),
            _ => None,
        }
    }

    /// Of a flag.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.values.get(name)? {
            Given::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// Of a whole number.
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.values.get(name)? {
            Given::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// Of a fraction.
    pub fn fraction(&self, name: &str) -> Option<f64> {
        match self.values.get(name)? {
            Given::Fraction(number) => Some(*number),
            _ => None,
        }
    }

    /// Of a date.
    pub fn date(&self, name: &str) -> Option<OffsetDateTime> {
        match self.values.get(name)? {
            Given::Date(date) => Some(*date),
            _ => None,
        }
    }

    /// Of a list; without one it is empty.
    pub fn list(&self, name: &str) -> &[String] {
        match self.values.get(name) {
            Some(Given::List(words)) => words,
            _ => &[],
        }
    }

    /// Of a list of ids.
    pub fn ids(&self, name: &str) -> Option<&[Uuid]> {
        match self.values.get(name)? {
            Given::Ids(ids) => Some(ids),
            _ => None,
        }
    }

    /// The rows of a map, by index; names are as they were sent. Without one it is empty.
    pub fn map(&self, name: &str) -> &[BTreeMap<String, String>] {
        match self.values.get(name) {
            Some(Given::Map(rows)) => rows,
            _ => &[],
        }
    }

    /// Likewise, for `name[0].key=…&name[0].value=…` as well as `name[0].thekey=thevalue`: keys and values.
    pub fn details(&self, name: &str) -> BTreeMap<String, String> {
        let mut details = BTreeMap::new();
        for row in self.map(name) {
            match (row.get("key"), row.get("value")) {
                (Some(key), Some(value)) => {
                    details.insert(key.clone(), value.clone());
                }
                _ => details.extend(row.clone()),
            }
        }
        details
    }

    /// A text that the table requires.
    ///
    /// # Errors
    /// It is not there.
    pub fn needed_text(&self, name: &'static str) -> Result<&str, ApiError> {
        self.text(name).ok_or_else(|| missing(name))
    }

    /// An id that the table requires.
    ///
    /// # Errors
    /// It is not there.
    pub fn needed_id(&self, name: &'static str) -> Result<Uuid, ApiError> {
        self.id(name).ok_or_else(|| missing(name))
    }
}

/// The table should have said so before: it and a command's code do not agree.
fn missing(name: &'static str) -> ApiError {
    ApiError::parameter(format!("parameter {name} is missing"))
}

/// libcloud sends `None` for what it does not have.
fn is_absent(text: &str) -> bool {
    text.is_empty() || text == "None"
}

/// `None` where a value means that there is none.
fn typed(parameter: &Parameter, text: &str) -> Result<Option<Given>, ApiError> {
    let name = parameter.name;
    let bad = |wanted: &str| {
        let text: String = text.chars().take(100).collect();
        ApiError::parameter(format!(
            "Invalid value {text:?} for parameter {name}: {wanted} is expected"
        ))
    };
    let trimmed = text.trim();
    Ok(Some(match parameter.kind {
        Kind::Text | Kind::Object => Given::Text(text.to_owned()),
        Kind::Id if trimmed == "-1" => return Ok(None),
        Kind::Id => Given::Id(id(name, trimmed)?),
        Kind::Flag if trimmed.eq_ignore_ascii_case("true") => Given::Flag(true),
        Kind::Flag if trimmed.eq_ignore_ascii_case("false") => Given::Flag(false),
        Kind::Flag => return Err(bad("true or false")),
        Kind::Number => Given::Number(trimmed.parse().map_err(|_| bad("a whole number"))?),
        Kind::Fraction => Given::Fraction(trimmed.parse().map_err(|_| bad("a number"))?),
        Kind::Date => Given::Date(
            date::parse(trimmed)
                .ok_or_else(|| bad("a date such as 2026-11-20, \"2026-11-20 12:00:00\" or 2026-11-20T12:00:00+0000"))?,
        ),
        Kind::List => Given::List(words(name, text)?.map(str::to_owned).collect()),
        Kind::Ids => Given::Ids(
            words(name, text)?
                .map(|word| id(name, word))
                .collect::<Result<_, _>>()?,
        ),
        Kind::Map => return Ok(None), // they have no value of their own
    }))
}

fn id(name: &str, text: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(text).map_err(|_| ApiError::no_such(name, text.chars().take(100).collect::<String>()))
}

fn words<'a>(name: &str, text: &'a str) -> Result<impl Iterator<Item = &'a str>, ApiError> {
    if text.matches(',').count() >= MAX_ELEMENTS {
        return Err(ApiError::parameter(format!(
            "parameter {name} has more than {MAX_ELEMENTS} values"
        )));
    }
    Ok(text.split(',').map(str::trim).filter(|word| !word.is_empty()))
}

/// `name[0].key=color`: rows by index.
fn map(name: &str, pairs: &[Pair]) -> Result<Option<Vec<BTreeMap<String, String>>>, ApiError> {
    let mut rows: BTreeMap<u32, BTreeMap<String, String>> = BTreeMap::new();
    for pair in pairs {
        let Some((start, rest)) = pair.name.split_at_checked(name.len()) else {
            continue;
        };
        if !start.eq_ignore_ascii_case(name) || !rest.starts_with('[') {
            continue;
        }
        let bad = || {
            let text = format!("Invalid parameter {:?}: write it like {name}[0].key=value", pair.name);
            ApiError::new(Code::Malformed, text)
        };
        let (index, key) = rest[1..].split_once(']').ok_or_else(bad)?;
        let index = index.parse().map_err(|_| bad())?;
        let key = key.strip_prefix('.').filter(|key| !key.is_empty()).ok_or_else(bad)?;
        if !is_absent(&pair.value) {
            rows.entry(index)
                .or_default()
                .insert(key.to_owned(), pair.value.clone());
        }
    }
    Ok((!rows.is_empty()).then(|| rows.into_values().collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::command::{Call, Outcome, required};
    use super::super::form;
    use super::*;

    static COMMAND: Command = Command::list("frobnicateThings", "Frobnicates.", |_: Call| {
        Box::pin(std::future::ready(Ok(Outcome::Success(None))))
    })
    .takes(&[
        required("name", Kind::Text, ""),
        optional("id", Kind::Id, ""),
        optional("is", Kind::Flag, ""),
        optional("size", Kind::Number, ""),
        optional("part", Kind::Fraction, ""),
        optional("since", Kind::Date, ""),
        optional("words", Kind::List, ""),
        optional("ids", Kind::Ids, ""),
        optional("details", Kind::Map, ""),
    ]);

    fn checked(query: &str) -> Result<Parameters, String> {
        let mut pairs = Vec::new();
        form::parse(query.as_bytes(), &mut pairs).map_err(|error| error.text)?;
        Parameters::check(&COMMAND, &pairs).map_err(|error| error.text)
    }

    #[test]
    fn each_kind_is_read_whatever_the_case_of_its_name() {
        let id = "0a31f5e2-6b0f-4d0c-9a55-0f0000000000";
        let query = format!(
            "NAME=A+b&Id={id}&is=TRUE&size=-3&part=0.5&since=2026-11-20&words=a,+b,,c&ids={id}&page=2\
             &Details%5B1%5D.key=b&details[1].value=2&details[0].cpuNumber=4&details[0].memory=512"
        );
        let parameters = checked(&query).unwrap();
        let uuid: Uuid = id.parse().unwrap();
        assert_eq!(
            (parameters.text("name"), parameters.id("id")),
            (Some("A b"), Some(uuid))
        );
        assert_eq!(
            (parameters.flag("is"), parameters.number("size")),
            (Some(true), Some(-3))
        );
        assert_eq!(
            (parameters.fraction("part"), parameters.number("page")),
            (Some(0.5), Some(2))
        );
        assert_eq!(
            parameters.date("since").map(date::format).as_deref(),
            Some("2026-11-20T00:00:00+0000")
        );
        assert_eq!(parameters.list("words"), ["a", "b", "c"]);
        assert_eq!(parameters.ids("ids"), Some(&[uuid][..]));
        let details: Vec<(String, String)> = parameters.details("details").into_iter().collect();
        let wanted = [("b", "2"), ("cpuNumber", "4"), ("memory", "512")];
        assert_eq!(details, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_absent_is_none_and_what_is_wrong_names_the_parameter() {
        let parameters = checked("name=x&id=-1&is=None&size=&unknown=1").unwrap();
        assert_eq!(
            (parameters.id("id"), parameters.flag("is"), parameters.number("size")),
            (None, None, None)
        );
        let missing = "Unable to execute API command frobnicatethings due to missing parameter name";
        assert_eq!(checked("is=true").unwrap_err(), missing);
        for (name, value) in [
            ("is", "1"),
            ("size", "1.5"),
            ("part", "x"),
            ("since", "soon"),
            ("id", "7"),
            ("ids", "7"),
        ] {
            let error = checked(&format!("name=x&{name}={value}")).unwrap_err();
            assert!(error.contains(&format!("parameter {name}")), "{error}");
        }
        for map in ["[", "[0", "[0]", "[0].", "[x].a", "[-1].a", "[99999999999].a"] {
            let error = checked(&format!("name=x&details{map}=1")).unwrap_err();
            assert!(error.ends_with("write it like details[0].key=value"), "{map}: {error}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in ".{0,200}", name in "(name|details|ids|since|words)(\\[.{0,4})?", value in ".{0,40}") {
            let pair = |name: &str, value: &str| Pair { name: name.into(), value: value.into() };
            let _ = Parameters::check(&COMMAND, &[pair("name", "x"), pair(&name, &value), pair(&noise, &noise)]);
        }
    }
}
