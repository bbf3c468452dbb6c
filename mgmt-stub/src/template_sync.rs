//! What is on an image store, compared with what should be (management.md §10.4).

use indexmap::IndexMap;
use protocol::secondary_storage::{DeleteCommand, TemplateProp};
use tracing::{info, warn};

use crate::alerts::{self, AlertType};
use crate::download_state::{DownloadEvent, DownloadState};
use crate::downloads::delete_command;
use crate::store::id::ImageStoreId;
use crate::store::image_store::ImageStore;
use crate::store::template::{Progress, Template, TemplateOnStores, TemplateStore};
use crate::store::{Store, StoreError};

/// A difference, and what to do about it.
#[derive(Clone, PartialEq, Debug)]
pub enum Finding {
    /// It is there: take its size and path.
    There(TemplateStore, TemplateProp),
    /// It is there and damaged: download it again.
    Damaged(Template, TemplateStore),
    /// It was there, and is not any more: download it again.
    Missing(Template, TemplateStore),
    /// Its template was deleted while nobody could reach the store.
    LeftOver(Template, TemplateProp),
}

/// Compares. CloudStack deletes what it does not know; a store may have more than one user, so we delete only what we
/// know to be deleted.
pub fn compare(
    store: ImageStoreId,
    templates: &[TemplateOnStores],
    deleted: &[Template],
    listed: &IndexMap<String, TemplateProp>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (template, rows) in templates {
        let Some(row) = rows.iter().find(|row| row.store == store) else {
            continue;
        };
        match listed.get(&template.unique_name) {
            Some(found) if found.is_corrupted => findings.push(Finding::Damaged(template.clone(), row.clone())),
            Some(found) if is_news(row, found) => findings.push(Finding::There(row.clone(), found.clone())),
            None if row.state == DownloadState::Downloaded => {
                findings.push(Finding::Missing(template.clone(), row.clone()));
            }
            _ => {}
        }
    }
    for (name, found) in listed {
        if let Some(template) = deleted.iter().find(|template| template.unique_name == *name) {
            findings.push(Finding::LeftOver(template.clone(), found.clone()));
        }
    }
    findings
}

fn is_news(row: &TemplateStore, found: &TemplateProp) -> bool {
    row.state != DownloadState::Abandoned
        && (row.state != DownloadState::Downloaded
            || row.progress.install_path != found.install_path
            || row.progress.size != Some(found.size))
}

/// Takes over one difference; answers what is to be deleted on the store.
pub(crate) async fn apply(
    store: &Store,
    image_store: &ImageStore,
    finding: Finding,
) -> Result<Option<DeleteCommand>, StoreError> {
    match finding {
        Finding::There(row, found) => {
            info!(template = %row.template, store = image_store.name, path = found.install_path, "Template found on the store");
            let progress = Progress {
                percent: 100,
                error: None,
                install_path: found.install_path,
                size: Some(found.size),
                physical_size: Some(found.physical_size),
                rate: None,
                ..row.progress
            };
            record(store, row.id, DownloadEvent::Done, progress).await?;
        }
        Finding::Damaged(template, row) => {
            let text = format!("{} is damaged on image store {}", template.facts.name, image_store.name);
            alerts::record(store, AlertType::UPLOAD_FAILED, Some(image_store.zone), None, text).await;
            again(store, row).await?;
        }
        Finding::Missing(template, row) => {
            warn!(
                name = template.facts.name,
                store = image_store.name,
                "Template is gone from the store, downloading it again"
            );
            again(store, row).await?;
        }
        Finding::LeftOver(template, found) => {
            info!(
                name = template.facts.name,
                store = image_store.name,
                "Deleting what is left of a template"
            );
            return Ok(found
                .install_path
                .map(|path| delete_command(&template, image_store, path)));
        }
    }
    Ok(None)
}

async fn again(store: &Store, row: TemplateStore) -> Result<(), StoreError> {
    if row.state == DownloadState::Downloaded {
        record(store, row.id, DownloadEvent::Lost, Progress::default()).await?;
    }
    Ok(())
}

async fn record(
    store: &Store,
    row: crate::store::id::TemplateStoreId,
    event: DownloadEvent,
    progress: Progress,
) -> Result<(), StoreError> {
    match store.download_event(row, event, progress, 1, None).await {
        // Deleted, or changed by its download, in this very moment: that counts.
        Err(StoreError::NoDownloadTransition(_)) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::store::id::{AccountId, TemplateId, TemplateStoreId, ZoneId};
    use crate::store::template::{TemplateFacts, TemplateKind};

    fn template(id: i64, state: DownloadState) -> TemplateOnStores {
        let facts = TemplateFacts {
            kind: TemplateKind::Template,
            name: "demo".into(),
            display_text: "demo".into(),
            format: "QCOW2".into(),
            hypervisor: "KVM".into(),
            url: "http://192.0.2.1/demo.qcow2".into(),
            checksum: None,
            arch: "x86_64".into(),
            bits: 64,
            os_type: None,
            template_tag: None,
            details: std::collections::BTreeMap::new(),
            account: AccountId(1),
            zone: ZoneId(1),
            is_public: true,
            is_featured: false,
            is_extractable: false,
            is_bootable: true,
            requires_hvm: true,
            password_enabled: false,
            ssh_key_enabled: false,
            dynamically_scalable: false,
        };
        let now = OffsetDateTime::UNIX_EPOCH;
        let template = Template {
            id: TemplateId(id),
            uuid: Uuid::nil(),
            unique_name: format!("{id}-1-demo"),
            facts,
            created: now,
            removed: None,
        };
        let row = TemplateStore {
            id: TemplateStoreId(id),
            template: TemplateId(id),
            store: ImageStoreId(1),
            state,
            progress: Progress {
                install_path: Some(format!("template/tmpl/1/{id}/demo.qcow2")),
                size: Some(10),
                ..Progress::default()
            },
            attempt: 1,
            next_attempt: None,
            updated: now,
        };
        (template, vec![row])
    }

    fn on_store(id: i64, is_corrupted: bool) -> (String, TemplateProp) {
        let name = format!("{id}-1-demo");
        let prop = TemplateProp {
            template_name: Some(name.clone()),
            install_path: Some(format!("template/tmpl/1/{id}/demo.qcow2")),
            size: 10,
            physical_size: 5,
            id,
            is_public: true,
            is_corrupted,
        };
        (name, prop)
    }

    #[test]
    fn differences_are_those_of_the_table() {
        use DownloadState::*;
        let templates = [
            template(1, Downloaded),
            template(2, Downloaded),
            template(3, NotDownloaded),
            template(4, Error),
            template(5, Downloaded),
            template(6, InProgress),
        ];
        let (gone, _) = template(7, Downloaded);
        let listed = IndexMap::from([
            on_store(1, false),
            on_store(4, false),
            on_store(5, true),
            on_store(7, false),
            on_store(8, false), // somebody else's
        ]);
        let findings = compare(ImageStoreId(1), &templates, std::slice::from_ref(&gone), &listed);
        let of = |index: usize| (templates[index].0.clone(), templates[index].1[0].clone());
        assert_eq!(
            findings,
            [
                Finding::Missing(of(1).0, of(1).1),
                Finding::There(of(3).1, on_store(4, false).1),
                Finding::Damaged(of(4).0, of(4).1),
                Finding::LeftOver(gone, on_store(7, false).1),
            ]
        );
        assert_eq!(compare(ImageStoreId(2), &templates, &[], &listed), []);
    }
}
