//! Asynchronous jobs.

use serde_json::{Value, json};

use crate::api::command::Kind::{Date, Id, Number, Object, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional};
use crate::api::date;
use crate::api::error::ApiError;
use crate::api::list;
use crate::store::account::Identity;
use crate::store::job::{Job, JobStatus};

const JOB: &[Field] = &[
    Field("jobid", Text, "the job"),
    Field("accountid", Text, "id of the account that asked"),
    Field("account", Text, "name of the account that asked"),
    Field("domainid", Text, "id of its domain"),
    Field("domainpath", Text, "path of its domain"),
    Field("userid", Text, "id of the user who asked"),
    Field("cmd", Text, "the command"),
    Field("jobstatus", Number, "0 pending, 1 success, 2 failed"),
    Field("jobprocstatus", Number, "0"),
    Field("jobresultcode", Number, "0, or 530 of a failure"),
    Field("jobresulttype", Text, "object, or text"),
    Field(
        "jobresult",
        Object,
        "what the command answers with, or errorcode and errortext",
    ),
    Field("jobinstancetype", Text, "type of what it works on"),
    Field("jobinstanceid", Text, "id of what it works on"),
    Field("created", Date, "when it was asked for"),
    Field("completed", Date, "when it ended"),
    Field("managementserverid", Text, "id of the management server"),
];

pub(super) const COMMANDS: &[Command] = &[
    Command::sync(
        "queryAsyncJobResult",
        "Says how far a job is, and what came of it.",
        |call| Box::pin(query(call)),
    )
    .open_to(Who::User)
    .takes(&[
        optional("jobid", Id, "the job"),
        optional("resourceid", Text, "or what the job works on: the newest job is meant"),
        optional("resourcetype", Text, "type of that"),
    ])
    .answers(JOB),
    Command::list("listAsyncJobs", "Lists the jobs that are pending.", |call| {
        Box::pin(list_jobs(call))
    })
    .takes(&[
        optional("startdate", Date, "not older than this"),
        optional("resourceid", Text, "what they work on"),
        optional("resourcetype", Text, "type of that"),
        optional(
            "listall",
            crate::api::command::Kind::Flag,
            "also those of other accounts",
        ),
    ])
    .answers(JOB),
];

async fn query(call: Call) -> Result<Outcome, ApiError> {
    let store = &call.management.store;
    let job = match (call.id("jobid"), call.text("resourceid")) {
        (Some(id), _) => store.job(id).await?.ok_or_else(|| ApiError::no_such_id("jobid", id))?,
        (None, Some(resource)) => {
            let found = store.job_of_instance(resource.to_lowercase()).await?;
            found.ok_or_else(|| ApiError::no_such("resourceid", resource))?
        }
        (None, None) => {
            let text = "Unable to execute API command queryasyncjobresult due to missing parameter jobid";
            return Err(ApiError::parameter(text));
        }
    };
    let by = store.identity(job.user).await?;
    if by.account.id != call.caller.identity.account.id && !call.caller.is_admin() {
        return Err(ApiError::no_such_id("jobid", job.uuid));
    }
    match describe(&call, &job, &by) {
        Value::Object(fields) => Ok(Outcome::Fields(fields)),
        value => Ok(Outcome::Object("asyncjobs", value)),
    }
}

async fn list_jobs(call: Call) -> Result<Outcome, ApiError> {
    let mut rows = Vec::new();
    let resource = call.text("resourceid").map(str::to_lowercase);
    for job in call.management.store.pending_jobs().await? {
        let is_wanted = call.date("startdate").is_none_or(|start| job.created >= start)
            && resource
                .as_deref()
                .is_none_or(|id| job.instance.is_some_and(|found| found.to_string() == id))
            && list::matches(
                call.text("resourcetype"),
                job.instance_type.as_deref().unwrap_or_default(),
            );
        if is_wanted {
            let by = call.management.store.identity(job.user).await?;
            rows.push(describe(&call, &job, &by));
        }
    }
    list::answer(&call, "asyncjobs", rows)
}

fn describe(call: &Call, job: &Job, by: &Identity) -> Value {
    let result_type = job
        .result
        .as_ref()
        .map(|result| if result.is_string() { "text" } else { "object" });
    json!({
        "jobid": job.uuid,
        "accountid": by.account.uuid,
        "account": by.account.name,
        "domainid": by.domain.uuid,
        "domainpath": by.domain.path,
        "userid": by.user.uuid,
        "cmd": job.command,
        "jobstatus": job.status.number(),
        "jobprocstatus": 0,
        "jobresultcode": job.result_code,
        "jobresulttype": (job.status != JobStatus::Pending).then_some(result_type),
        "jobresult": job.result,
        "jobinstancetype": job.instance_type,
        "jobinstanceid": job.instance,
        "created": date::format(job.created),
        "completed": job.completed.map(date::format),
        "managementserverid": call.management.id,
    })
}
