//! Row numbers. One type each: a swapped id is a compile error.

use std::fmt;
use std::str::FromStr;

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                i64::column_result(value).map(Self)
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                self.0.to_sql()
            }
        }
    )*};
}

ids! {
    /// `agent_id` in the header of a message, once the agent is registered.
    HostId
    /// Boot argument `zone=`.
    ZoneId
    /// Boot argument `pod=`.
    PodId
    ImageStoreId
    UserId
    AccountId
    InstanceId
    TemplateId
    TemplateStoreId
    ConsoleSessionId
    CommandLogId
    DomainId
    EventId
    AlertId
    JobId
    StoragePoolId
    VolumeId
}
