//! On, off, gone.

use std::pin::Pin;

use platform::logging::chain;

use super::deploy::user_vms;
use super::{Describe, find};
use crate::api::command::{Call, Job, Outcome};
use crate::api::error::{ApiError, Code};
use crate::configuration::ALLOW_USER_EXPUNGE_RECOVER_VM;
use crate::store::StoreError;
use crate::store::id::InstanceId;
use crate::store::instance::Instance;
use crate::user_vms::{UserVmError, UserVms};

type Doing = Pin<Box<dyn Future<Output = Result<Instance, UserVmError>> + Send>>;

pub(super) async fn start(call: Call) -> Result<Job, ApiError> {
    job(call, "starting", |vms, id, _| {
        Box::pin(async move { vms.start(id).await })
    })
    .await
}

pub(super) async fn stop(call: Call) -> Result<Job, ApiError> {
    job(call, "stopping", |vms, id, is_forced| {
        Box::pin(async move { vms.stop(id, is_forced).await })
    })
    .await
}

pub(super) async fn reboot(call: Call) -> Result<Job, ApiError> {
    job(call, "rebooting", |vms, id, is_forced| {
        Box::pin(async move { vms.reboot(id, is_forced).await })
    })
    .await
}

pub(super) async fn destroy(call: Call) -> Result<Job, ApiError> {
    if call.flag("expunge") == Some(true) {
        may_expunge(&call)?;
        return job(call, "destroying and expunging", |vms, id, _| {
            Box::pin(async move { vms.destroy_for_good(id).await })
        })
        .await;
    }
    job(call, "destroying", |vms, id, is_forced| {
        Box::pin(async move { vms.destroy(id, is_forced).await })
    })
    .await
}

pub(super) async fn expunge(call: Call) -> Result<Job, ApiError> {
    may_expunge(&call)?;
    job(call, "expunging", |vms, id, _| {
        Box::pin(async move { vms.expunge(id).await })
    })
    .await
}

pub(super) async fn recover(call: Call) -> Result<Outcome, ApiError> {
    may_expunge(&call)?;
    let (vm, _) = ours(&call).await?;
    let is_admin = call.caller.is_admin();
    let recovered = user_vms(&call)?.recover(vm.id).await;
    let vm = recovered.map_err(|error| told(error, is_admin))?;
    call.record(
        "VM.RECOVER",
        format!("recovered instance {}", vm.display_name),
        Some(("VirtualMachine", vm.uuid)),
    )
    .await?;
    let row = Describe::new(&call).await?.row(&call, &vm);
    Ok(Outcome::Object("virtualmachine", row))
}

/// `forced` is passed on.
async fn job(call: Call, doing: &'static str, run: fn(UserVms, InstanceId, bool) -> Doing) -> Result<Job, ApiError> {
    let (vm, user_vms) = ours(&call).await?;
    let description = format!("{doing} instance {}", vm.display_name);
    let (id, uuid, is_forced) = (vm.id, vm.uuid, call.flag("forced") == Some(true));
    let work = async move {
        let done = run(user_vms, id, is_forced).await;
        let vm = done.map_err(|error| told(error, call.caller.is_admin()))?;
        let row = Describe::new(&call).await?.row(&call, &vm);
        Ok(Outcome::Object("virtualmachine", row))
    };
    Ok(Job::new(description, work).on("VirtualMachine", uuid))
}

/// The instance that `id` names, and who runs it.
async fn ours(call: &Call) -> Result<(Instance, UserVms), ApiError> {
    let (vm, user_vm) = find(call, "id").await?;
    if user_vm.is_none() {
        let text = format!(
            "instance {} is run by somebody else, who has to do this",
            vm.display_name
        );
        return Err(ApiError::new(Code::Unsupported, text));
    }
    Ok((vm, user_vms(call)?.clone()))
}

fn may_expunge(call: &Call) -> Result<(), ApiError> {
    if call.caller.is_admin() || call.management.configuration.flag(&ALLOW_USER_EXPUNGE_RECOVER_VM) {
        return Ok(());
    }
    let text = format!(
        "only an administrator may expunge or recover instances; the setting {} would let users",
        ALLOW_USER_EXPUNGE_RECOVER_VM.name
    );
    Err(ApiError::new(Code::Permission, text))
}

/// An administrator hears what the hypervisor said, which names files of this machine.
pub(super) fn told(error: UserVmError, is_admin: bool) -> ApiError {
    let code = match error {
        UserVmError::Store(StoreError::LostRace { .. } | StoreError::NoInstanceTransition(_)) => Code::ResourceInUse,
        UserVmError::Store(error) => return error.into(),
        UserVmError::State { .. } | UserVmError::Gone(_) => Code::Parameter,
        UserVmError::Disk(_) => Code::ResourceAllocation,
        UserVmError::NoOffering(_) | UserVmError::Driver { .. } => Code::Internal,
    };
    match (&error, is_admin) {
        (UserVmError::Driver { .. }, true) => ApiError::new(code, chain(&error).to_string()),
        (UserVmError::Driver { .. }, false) => {
            ApiError::new(code, format!("{error}; ask an administrator for the reason"))
        }
        _ => ApiError::new(code, error.to_string()),
    }
}
