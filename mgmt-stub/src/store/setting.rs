//! Values by name: settings that were changed, and what is made once and kept, such as keys.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Store, StoreError};

impl Store {
    /// All that are there, by name.
    pub async fn settings(&self) -> Result<BTreeMap<String, String>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare("SELECT name, value FROM setting")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub async fn setting(&self, name: impl Into<String>) -> Result<Option<String>, StoreError> {
        let name = name.into();
        self.read(move |transaction| Ok(get(transaction, &name)?)).await
    }

    pub async fn set_setting(&self, name: impl Into<String>, value: impl Into<String>) -> Result<(), StoreError> {
        let (name, value) = (name.into(), value.into());
        self.write(move |transaction| Ok(set(transaction, &name, &value)?))
            .await
    }

    /// The value that is there, or else the one `make` makes: whoever asks, and however often, gets the same.
    pub async fn setting_or_insert_with(
        &self,
        name: impl Into<String>,
        make: impl FnOnce() -> String + Send + 'static,
    ) -> Result<String, StoreError> {
        let name = name.into();
        self.write(move |transaction| {
            if let Some(value) = get(transaction, &name)? {
                return Ok(value);
            }
            let value = make();
            set(transaction, &name, &value)?;
            Ok(value)
        })
        .await
    }
}

fn get(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT value FROM setting WHERE name = ?";
    transaction.query_row(sql, [name], |row| row.get(0)).optional()
}

fn set(transaction: &Transaction<'_>, name: &str, value: &str) -> rusqlite::Result<()> {
    let sql = "INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    transaction.execute(sql, params![name, value]).map(drop)
}
