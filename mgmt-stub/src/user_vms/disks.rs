//! Root disks: a copy of the template on the pool, made once by [`crate::host`], and an overlay for each VM.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use protocol::answer::{Answer, AnswerBody};
use protocol::command::Command;
use protocol::secondary_storage::{CopyCmdAnswer, CopyCommand, DeleteCommand};
use protocol::transfer::{
    DataStoreTO, DataTO, ImageFormat, PrimaryDataStoreTO, StoragePoolType, TemplateObjectTO, VolumeObjectTO, VolumeType,
};
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use super::{UserVmError, UserVms};
use crate::connect::nfs;
use crate::download_state::DownloadState;
use crate::downloads::{hypervisor, image_format};
use crate::host::Mounts;
use crate::store::StoreError;
use crate::store::instance::Instance;
use crate::store::storage_pool::{StoragePool, TemplateOnPool};
use crate::store::template::Template;
use crate::store::user_vm::{Volume, VolumeState};

/// Between two notes of how far a copy is: people read them.
const NOTE: Duration = Duration::from_secs(1);

/// Why a VM has no root disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It was deleted, and is not on the pool.
    #[error("template {0} does not exist any more")]
    NoTemplate(String),
    /// It is not there yet, or not where we are.
    #[error("template {0} is on no image store that this machine has; wait until it is Ready")]
    NotReady(String),
    /// The host's words.
    #[error("template {name} cannot be copied to primary storage: {details}")]
    Copy {
        /// Which template.
        name: String,
        /// What the host said.
        details: String,
    },
    /// The host's words.
    #[error("the root disk cannot be {what}: {details}")]
    Volume {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        details: String,
    },
    /// The row is gone.
    #[error("the instance has no root disk any more")]
    NoVolume,
}

impl UserVms {
    /// The file of the VM's root disk, which is made if it is not there yet. How far that is is the VM's reason.
    pub(super) async fn prepare_disk(&self, vm: &Instance) -> Result<PathBuf, UserVmError> {
        let store = &self.inner.store;
        let volume = store.root_volume(vm.id).await?.ok_or(DiskError::NoVolume)?;
        if volume.state == VolumeState::Ready {
            return Ok(self.inner.host.path(volume.uuid));
        }
        let template = store.template(volume.template).await?;
        let template = template.ok_or_else(|| DiskError::NoTemplate(volume.template.to_string()))?;
        let base = self.template_on_pool(&template, vm).await?;
        let copy = CopyCommand {
            src_to: Some(DataTO::Template(Box::new(TemplateObjectTO {
                path: Some(base.path),
                size: Some(base.size),
                image_data_store: Some(self.primary()),
                ..described(&template)
            }))),
            dest_to: Some(DataTO::Volume(Box::new(self.described_volume(&volume, vm)))),
            ..CopyCommand::default()
        };
        let (progress, _progress) = watch::channel(0);
        let answer = self
            .inner
            .host
            .carry_out(&Command::new(copy), &Mounts::new(), &progress)
            .await;
        let made = copied(answer).and_then(|made| match made {
            DataTO::Volume(made) => made.path.zip(made.size).ok_or_else(String::new),
            _ => Err(String::new()),
        });
        let (path, size) = made.map_err(|details| DiskError::Volume { what: "made", details })?;
        store.volume_ready(volume.id, path, size).await?;
        Ok(self.inner.host.path(volume.uuid))
    }

    /// The template's copy on the pool. It is made once: who needs it meanwhile waits.
    async fn template_on_pool(&self, template: &Template, vm: &Instance) -> Result<TemplateOnPool, UserVmError> {
        let (store, pool) = (&self.inner.store, &self.inner.pool);
        let _lock = if let Some(lock) = self.inner.copies.try_lock(template.id) {
            lock
        } else {
            let note = format!(
                "waiting for template {} to be copied to primary storage",
                template.facts.name
            );
            store.set_instance_reason(vm.id, note).await?;
            self.inner.copies.lock(template.id).await
        };
        if let Some(found) = store.template_on_pool(template.id, pool.id).await? {
            return Ok(found);
        }
        if template.removed.is_some() {
            return Err(DiskError::NoTemplate(template.facts.name.clone()).into());
        }
        let (source, mounts) = self.source(template).await?;
        let copy = CopyCommand {
            src_to: Some(DataTO::Template(Box::new(source))),
            dest_to: Some(DataTO::Template(Box::new(TemplateObjectTO {
                path: Some(template.uuid.to_string()),
                format: Some(ImageFormat::Qcow2),
                image_data_store: Some(self.primary()),
                ..described(template)
            }))),
            ..CopyCommand::default()
        };
        info!(vm = vm.name, template = %template.uuid, "Copying a template to primary storage");
        let (sender, mut progress) = watch::channel(0_u8);
        let command = Command::new(copy);
        let notes = async {
            loop {
                let percent = *progress.borrow_and_update();
                let note = format!(
                    "copying template {} to primary storage: {percent} %",
                    template.facts.name
                );
                store.set_instance_reason(vm.id, note).await.ok();
                tokio::time::sleep(NOTE).await;
                if progress.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let answer = tokio::select! {
            answer = self.inner.host.carry_out(&command, &mounts, &sender) => answer,
            () = notes => Answer::failure("the copy was forgotten"),
        };
        let made = copied(answer).and_then(|made| match made {
            DataTO::Template(made) => Ok(made),
            _ => Err("the host answered with something else".to_owned()),
        });
        let made = made.map_err(|details| DiskError::Copy {
            name: template.facts.name.clone(),
            details,
        })?;
        let copy = TemplateOnPool {
            template: template.id,
            pool: pool.id,
            path: made.path.unwrap_or_else(|| template.uuid.to_string()),
            size: made.size.unwrap_or_default(),
            physical_size: made.physical_size.unwrap_or_default(),
        };
        store.add_template_on_pool(copy.clone()).await?;
        Ok(copy)
    }

    /// Where the template is on an image store that is a directory of this machine.
    async fn source(&self, template: &Template) -> Result<(TemplateObjectTO, Mounts), UserVmError> {
        let store = &self.inner.store;
        let not_ready = || DiskError::NotReady(template.facts.name.clone());
        let stores = store.image_stores(template.facts.zone).await?;
        let found = crate::downloads::find(store, template.id)
            .await?
            .ok_or_else(not_ready)?;
        let place = found.1.into_iter().find_map(|row| {
            let path = row
                .progress
                .install_path
                .filter(|_| row.state == DownloadState::Downloaded)?;
            let store = stores.iter().find(|store| store.id == row.store)?;
            store.local_directory.is_some().then_some((path, store))
        });
        let (path, image_store) = place.ok_or_else(not_ready)?;
        let source = TemplateObjectTO {
            path: Some(path),
            image_data_store: Some(nfs(image_store)),
            ..described(template)
        };
        let mounts = stores
            .iter()
            .filter_map(|store| Some((store.url.clone(), store.local_directory.clone()?.into())));
        Ok((source, mounts.collect()))
    }

    pub(super) async fn remove_disk(&self, vm: &Instance) -> Result<(), UserVmError> {
        let store = &self.inner.store;
        let Some(volume) = store.root_volume(vm.id).await? else {
            return Ok(());
        };
        let object = VolumeObjectTO {
            path: Some(volume.uuid.to_string()),
            ..self.described_volume(&volume, vm)
        };
        self.delete(DataTO::Volume(Box::new(object)))
            .await
            .map_err(|details| DiskError::Volume {
                what: "removed",
                details,
            })?;
        Ok(store.remove_volume(volume.id).await?)
    }

    /// Copies of templates that are gone, when no disk needs them any more.
    pub(super) async fn remove_unused_templates(&self) -> Result<(), StoreError> {
        let (store, pool) = (&self.inner.store, &self.inner.pool);
        for copy in store.unused_templates_on_pool(pool.id).await? {
            let Some(_lock) = self.inner.copies.try_lock(copy.template) else {
                continue;
            };
            // First the row: without it the file is a stray, which the next start removes.
            if !store.remove_template_on_pool(copy.template, pool.id).await? {
                continue;
            }
            let object = TemplateObjectTO {
                path: Some(copy.path.clone()),
                image_data_store: Some(self.primary()),
                ..TemplateObjectTO::default()
            };
            match self.delete(DataTO::Template(Box::new(object))).await {
                Ok(()) => info!(path = copy.path, "A deleted template was removed from primary storage"),
                Err(details) => warn!(
                    path = copy.path,
                    details, "Cannot remove a deleted template from primary storage"
                ),
            }
        }
        Ok(())
    }

    /// Files without a row: of a server that was killed between the two.
    pub(super) async fn remove_strays(&self) -> Result<(), StoreError> {
        let store = &self.inner.store;
        let mut known: HashSet<String> = store
            .volumes()
            .await?
            .iter()
            .map(|volume| volume.uuid.to_string())
            .collect();
        let copies = store.templates_on_pool(self.inner.pool.id).await?;
        known.extend(copies.into_iter().map(|copy| copy.path));
        let files = self.inner.host.files().unwrap_or_default();
        for file in files.into_iter().map(|file: Uuid| file.to_string()) {
            if known.contains(&file) {
                continue;
            }
            info!(file, "Removing a file of primary storage that belongs to nothing");
            let object = VolumeObjectTO {
                path: Some(file.clone()),
                data_store: Some(self.primary()),
                ..VolumeObjectTO::default()
            };
            if let Err(details) = self.delete(DataTO::Volume(Box::new(object))).await {
                warn!(file, details, "Cannot remove it");
            }
        }
        Ok(())
    }

    async fn delete(&self, data: DataTO) -> Result<(), String> {
        let command = Command::new(DeleteCommand {
            data: Some(data),
            delete_chain: false,
        });
        let (progress, _progress) = watch::channel(0);
        let answer = self.inner.host.carry_out(&command, &Mounts::new(), &progress).await;
        if answer.result {
            Ok(())
        } else {
            Err(answer.details.unwrap_or_default())
        }
    }

    /// The pool as hosts know it.
    fn primary(&self) -> DataStoreTO {
        let StoragePool {
            id, uuid, name, path, ..
        } = &self.inner.pool;
        DataStoreTO::Primary(Box::new(PrimaryDataStoreTO {
            uuid: Some(uuid.to_string()),
            name: Some(name.clone()),
            id: id.0,
            pool_type: Some(StoragePoolType::Filesystem),
            path: Some(path.clone()),
            ..PrimaryDataStoreTO::default()
        }))
    }

    fn described_volume(&self, volume: &Volume, vm: &Instance) -> VolumeObjectTO {
        VolumeObjectTO {
            uuid: Some(volume.uuid.to_string()),
            volume_type: Some(VolumeType::Root),
            data_store: Some(self.primary()),
            name: Some(volume.name.clone()),
            path: Some(volume.uuid.to_string()),
            volume_id: Some(volume.id.0),
            vm_name: Some(vm.name.clone()),
            account_id: volume.account.0,
            format: Some(ImageFormat::Qcow2),
            pool_id: Some(volume.pool.0),
            id: volume.id.0,
            device_id: Some(0),
            ..VolumeObjectTO::default()
        }
    }
}

fn described(template: &Template) -> TemplateObjectTO {
    let facts = &template.facts;
    TemplateObjectTO {
        orig_url: Some(facts.url.clone()),
        uuid: Some(template.uuid.to_string()),
        id: template.id.0,
        format: image_format(&facts.format),
        account_id: facts.account.0,
        checksum: facts.checksum.clone(),
        hvm: facts.requires_hvm,
        display_text: Some(facts.display_text.clone()),
        name: Some(template.unique_name.clone()),
        hypervisor_type: hypervisor(&facts.hypervisor),
        bootable: facts.is_bootable,
        unique_name: Some(template.unique_name.clone()),
        ..TemplateObjectTO::default()
    }
}

/// What a host says it has made; else its words.
fn copied(answer: Answer) -> Result<DataTO, String> {
    match answer.body {
        AnswerBody::CopyCmd(CopyCmdAnswer { new_data: Some(made) }) if answer.result => Ok(made),
        _ => Err(answer.details.unwrap_or_else(|| "the host gave no reason".to_owned())),
    }
}
