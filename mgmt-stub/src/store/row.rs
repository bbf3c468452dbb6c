//! Between columns and our types.

use std::error::Error;
use std::str::FromStr;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{Row, ToSql};
use time::OffsetDateTime;

/// A column that holds the text form of a `T`.
pub(super) struct Parsed<T>(pub(super) T);

impl<T: FromStr<Err: Error + Send + Sync + 'static>> FromSql for Parsed<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Self).map_err(FromSqlError::other)
    }
}

/// A column that holds seconds since 1970-01-01 UTC.
pub(super) struct Seconds(pub(super) OffsetDateTime);

impl FromSql for Seconds {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let seconds = value.as_i64()?;
        let moment = OffsetDateTime::from_unix_timestamp(seconds);
        moment.map(Self).map_err(|_| FromSqlError::OutOfRange(seconds))
    }
}

/// A column that holds milliseconds since 1970-01-01 UTC, where a second is too much.
pub(super) struct Milliseconds(pub(super) OffsetDateTime);

impl FromSql for Milliseconds {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let millis = value.as_i64()?;
        let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000);
        moment.map(Self).map_err(|_| FromSqlError::OutOfRange(millis))
    }
}

impl ToSql for Milliseconds {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let millis = self.0.unix_timestamp_nanos() / 1_000_000;
        Ok(i64::try_from(millis).unwrap_or(i64::MAX).into())
    }
}

pub(super) fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// A column that holds such seconds or nothing.
pub(super) fn moment(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<OffsetDateTime>> {
    Ok(row.get::<_, Option<Seconds>>(column)?.map(|seconds| seconds.0))
}
