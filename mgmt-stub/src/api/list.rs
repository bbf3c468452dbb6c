//! Pages of lists (management.md §17.7).

use serde_json::Value;
use uuid::Uuid;

use super::command::{Call, Outcome};
use super::error::ApiError;
use crate::configuration::DEFAULT_PAGE_SIZE;

/// Which rows of a list are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// The first row, from 0 on.
    pub offset: u64,
    /// How many at most.
    pub limit: u64,
}

/// Which rows the caller wants.
///
/// # Errors
/// 431: `page` without `pagesize` or the other way round, or not possible.
pub fn page(call: &Call) -> Result<Page, ApiError> {
    let most = u64::try_from(call.management.configuration.number(&DEFAULT_PAGE_SIZE)).unwrap_or(1);
    let number = |name| call.number(name);
    match (number("page"), number("pagesize")) {
        (None, None) => Ok(Page { offset: 0, limit: most }),
        (None, Some(-1)) => Ok(Page {
            offset: 0,
            limit: u64::MAX,
        }),
        (Some(_), Some(-1)) => Err(ApiError::parameter(
            "pagesize -1 is everything at once: leave page away",
        )),
        (Some(page), Some(size)) => {
            let (Some(page), Some(size)) = (positive(page), positive(size)) else {
                return Err(ApiError::parameter("page and pagesize are whole numbers from 1 on"));
            };
            if size > most {
                let text = format!(
                    "pagesize {size} is more than {most}, the setting {}",
                    DEFAULT_PAGE_SIZE.name
                );
                return Err(ApiError::parameter(text));
            }
            Ok(Page {
                offset: (page - 1).saturating_mul(size),
                limit: size,
            })
        }
        (Some(_), None) => Err(ApiError::parameter("page needs pagesize, too")),
        (None, Some(_)) => Err(ApiError::parameter("pagesize needs page, too")),
    }
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

/// A list that fits into memory: of `rows`, in their order, those that match `id`, `ids`, `name` and `keyword`, and of
/// these one page.
///
/// # Errors
/// 431: bad pages, or an `id` that is not there.
pub fn answer(call: &Call, object: &'static str, rows: Vec<Value>) -> Result<Outcome, ApiError> {
    let page = page(call)?;
    let text = |row: &Value, field: &str| row.get(field).and_then(Value::as_str).map(str::to_owned);
    let is = |row: &Value, field: &str, wanted: &str| text(row, field).as_deref() == Some(wanted);
    let one = call.id("id").map(|id| id.to_string());
    if let Some(id) = &one
        && !rows.iter().any(|row| is(row, "id", id))
    {
        return Err(ApiError::no_such("id", id));
    }
    let many: Option<Vec<String>> = call.ids("ids").map(|ids| ids.iter().map(Uuid::to_string).collect());
    let keyword = call.text("keyword").map(str::to_lowercase);
    let has_keyword = |row: &Value, keyword: &str| {
        ["name", "displaytext", "displayname", "description"]
            .iter()
            .any(|field| text(row, field).is_some_and(|text| text.to_lowercase().contains(keyword)))
    };
    let mut rows = rows;
    rows.retain(|row| {
        one.as_deref().is_none_or(|id| is(row, "id", id))
            && many.as_ref().is_none_or(|ids| ids.iter().any(|id| is(row, "id", id)))
            && call.text("name").is_none_or(|name| is(row, "name", name))
            && keyword.as_deref().is_none_or(|keyword| has_keyword(row, keyword))
    });
    let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let rows = rows
        .into_iter()
        .skip(size(page.offset))
        .take(size(page.limit))
        .collect();
    Ok(Outcome::List { object, count, rows })
}

/// Whether a field is the text that an optional parameter wants, whatever the case.
pub fn matches(wanted: Option<&str>, found: &str) -> bool {
    wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
}

/// Whether a field is the id that an optional parameter wants.
pub fn is_id(wanted: Option<Uuid>, found: Option<Uuid>) -> bool {
    wanted.is_none_or(|wanted| Some(wanted) == found)
}
