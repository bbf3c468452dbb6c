//! Tags: labels that users put on anything that has a UUID.

use rusqlite::{Row, named_params, params};
use uuid::Uuid;

use super::id::AccountId;
use super::{Store, StoreError};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tag {
    pub account: AccountId,
    /// As the caller wrote it, such as `Template`.
    pub resource_type: String,
    pub resource: String,
    pub key: String,
    pub value: String,
    pub customer: Option<String>,
}

impl Store {
    /// All or none; a tag with a known key replaces it.
    pub async fn add_tags(&self, tags: Vec<Tag>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let sql = "INSERT INTO tag (account_id, resource_type, resource_id, key, value, customer)
                       VALUES (:account, :type, :resource, :key, :value, :customer)
                       ON CONFLICT (resource_id, key) DO UPDATE SET value = excluded.value, customer = excluded.customer";
            let mut statement = transaction.prepare_cached(sql)?;
            for tag in tags {
                statement.execute(named_params! {
                    ":account": tag.account, ":type": tag.resource_type, ":resource": tag.resource, ":key": tag.key,
                    ":value": tag.value, ":customer": tag.customer,
                })?;
            }
            Ok(())
        })
        .await
    }

    /// Deletes tags of a resource: all, or that with a key, or that with a key and a value. Says how many.
    pub async fn delete_tags(
        &self,
        resource: Uuid,
        key: Option<String>,
        value: Option<String>,
    ) -> Result<usize, StoreError> {
        self.write(move |transaction| {
            let sql =
                "DELETE FROM tag WHERE resource_id = ?1 AND (?2 IS NULL OR key = ?2) AND (?3 IS NULL OR value = ?3)";
            Ok(transaction.execute(sql, params![resource.to_string(), key, value])?)
        })
        .await
    }

    /// All, by resource and key.
    pub async fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM tag ORDER BY resource_id, key")?;
            Ok(statement.query_map([], tag)?.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn tag(row: &Row<'_>) -> rusqlite::Result<Tag> {
    Ok(Tag {
        account: row.get("account_id")?,
        resource_type: row.get("resource_type")?,
        resource: row.get("resource_id")?,
        key: row.get("key")?,
        value: row.get("value")?,
        customer: row.get("customer")?,
    })
}
