//! Fields of whatever belongs to an account: whose it is, and its tags.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::store::account::{Account, Domain};
use crate::store::id::AccountId;
use crate::store::tag::Tag;
use crate::store::{Store, StoreError};

/// Accounts, domains and tags, for many rows.
pub(super) struct Owners {
    accounts: Vec<Account>,
    domains: Vec<Domain>,
    tags: Vec<Tag>,
}

impl Owners {
    pub(super) async fn load(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            accounts: store.accounts().await?,
            domains: store.domains().await?,
            tags: store.tags().await?,
        })
    }

    /// Whether a thing has all these tags.
    pub(super) fn has_tags(&self, resource: &str, wanted: &[BTreeMap<String, String>]) -> bool {
        wanted.iter().all(|tag| {
            self.tags.iter().any(|found| {
                found.resource == resource
                    && tag.get("key").is_none_or(|key| *key == found.key)
                    && tag.get("value").is_none_or(|value| *value == found.value)
            })
        })
    }

    /// `tags` of a thing.
    pub(super) fn tags_of(&self, resource: &str) -> Vec<Value> {
        let own = self.tags.iter().filter(|tag| tag.resource == resource);
        own.map(|tag| self.describe_tag(tag)).collect()
    }

    /// All tags, by thing and key.
    pub(super) fn tags(&self) -> &[Tag] {
        &self.tags
    }

    /// Who put it there may not be the owner of the thing.
    pub(super) fn describe_tag(&self, tag: &Tag) -> Value {
        let (account, domain) = self.account(tag.account);
        json!({
            "key": tag.key,
            "value": tag.value,
            "resourcetype": tag.resource_type,
            "resourceid": tag.resource,
            "customer": tag.customer,
            "account": account.map(|account| &account.name),
            "domainid": domain.map(|domain| domain.uuid),
            "domain": domain.map(|domain| &domain.name),
        })
    }

    fn account(&self, id: AccountId) -> (Option<&Account>, Option<&Domain>) {
        let account = self.accounts.iter().find(|row| row.id == id);
        let domain = account.and_then(|account| self.domains.iter().find(|domain| domain.id == account.domain));
        (account, domain)
    }
}

/// `account`, `domain` and the like, and `tags`.
pub(super) fn fields(owners: &Owners, account: AccountId, resource: &str) -> Map<String, Value> {
    let (account, domain) = owners.account(account);
    let fields = json!({
        "account": account.map(|account| &account.name),
        "accountid": account.map(|account| account.uuid),
        "domain": domain.map(|domain| &domain.name),
        "domainid": domain.map(|domain| domain.uuid),
        "domainpath": domain.map(|domain| &domain.path),
        "tags": owners.tags_of(resource),
    });
    fields.as_object().cloned().unwrap_or_default()
}
