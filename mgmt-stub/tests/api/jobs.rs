//! Jobs, the events they leave, and how they outlive (or not) the server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mgmt_stub::api::error::{ApiError, Code};
use mgmt_stub::jobs::{Wanted, Work};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::support::Server;

async fn submit(server: &Server, resource: Option<Uuid>, work: Work) -> Uuid {
    let wanted = Wanted {
        user: server.management.store.administrator().await.unwrap().user.id,
        command: "frobnicateThing",
        instance: resource.map(|id| ("Thing", id)),
        event: Some(("THING.FROBNICATE", "frobnicating a thing".into())),
        work,
    };
    server.management.jobs.submit(wanted).await.unwrap().uuid
}

async fn query(server: &Server, job: Uuid) -> Value {
    server
        .api("queryAsyncJobResult", &[("jobid", &job.to_string())])
        .await
        .unwrap()
}

async fn finished(server: &Server, job: Uuid) -> Value {
    for _ in 0..1000 {
        let seen = query(server, job).await;
        if seen["jobstatus"] != 0 {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    query(server, job).await
}

#[tokio::test]
async fn a_job_is_pending_then_done_and_its_events_say_so() {
    let server = Server::start().await;
    let (go, gone) = oneshot::channel();
    let thing = Uuid::new_v4();
    let work: Work = Box::pin(async move {
        gone.await.unwrap();
        Ok(json!({ "thing": { "id": 1 } }))
    });
    let job = submit(&server, Some(thing), work).await;
    let seen = query(&server, job).await;
    assert_eq!(
        (&seen["jobstatus"], seen.get("completed"), seen.get("jobresult")),
        (&json!(0), None, None)
    );
    let pending = server.api("listAsyncJobs", &[]).await.unwrap();
    assert_eq!(pending["asyncjobs"][0]["jobid"], job.to_string());

    go.send(()).unwrap();
    let seen = finished(&server, job).await;
    assert_eq!(seen["jobresult"], json!({ "thing": { "id": 1 } }));
    assert_eq!(seen["jobresulttype"], "object");
    assert_eq!((&seen["jobstatus"], &seen["jobresultcode"]), (&json!(1), &json!(0)));
    assert_eq!(
        (&seen["cmd"], &seen["jobinstanceid"]),
        (&json!("frobnicateThing"), &json!(thing.to_string()))
    );
    assert!(seen["completed"].is_string());
    assert_eq!(server.api("listAsyncJobs", &[]).await.unwrap(), json!({}));

    let events = server.api("listEvents", &[("type", "THING.FROBNICATE")]).await.unwrap();
    let events = events["event"].as_array().unwrap();
    let states: Vec<_> = events.iter().map(|event| event["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["Completed", "Started", "Scheduled"]);
    assert_eq!(events[0]["parentid"], events[2]["id"]);
    let chain = server
        .api("listEvents", &[("startid", events[2]["id"].as_str().unwrap())])
        .await
        .unwrap();
    assert_eq!(chain["count"], 3);
}

#[tokio::test]
async fn a_job_that_fails_says_why_and_one_that_panics_hurts_nobody_else() {
    let server = Server::start().await;
    let refuse: Work = Box::pin(async { Err(ApiError::new(Code::ResourceInUse, "the thing is in use")) });
    let job = submit(&server, None, refuse).await;
    let seen = finished(&server, job).await;
    assert_eq!((&seen["jobstatus"], &seen["jobresultcode"]), (&json!(2), &json!(530)));
    assert_eq!(
        seen["jobresult"],
        json!({ "errorcode": 530, "errortext": "the thing is in use" })
    );

    let thing = Uuid::new_v4();
    let burst: Work = Box::pin(async { panic!("on purpose") });
    let job = submit(&server, Some(thing), burst).await;
    let behind = submit(&server, Some(thing), Box::pin(async { Ok(json!({})) })).await;
    let text = &finished(&server, job).await["jobresult"]["errortext"];
    assert_eq!(text, "the server failed in this job; the reason is in its log");
    assert_eq!(finished(&server, behind).await["jobstatus"], 1);
    let errors = server.api("listEvents", &[("level", "ERROR")]).await.unwrap();
    assert_eq!(errors["count"], 2);
}

#[tokio::test]
async fn jobs_on_one_thing_run_in_order_and_others_beside_them() {
    let server = Server::start().await;
    let (thing, other) = (Uuid::new_v4(), Uuid::new_v4());
    let order: Arc<Mutex<Vec<u32>>> = Arc::default();
    let (go, gone) = oneshot::channel::<()>();
    let mut gate = Some(gone);
    let mut jobs = Vec::new();
    for number in 0..5 {
        let (order, gate) = (Arc::clone(&order), gate.take());
        let work: Work = Box::pin(async move {
            if let Some(gate) = gate {
                gate.await.unwrap();
            }
            order.lock().unwrap().push(number);
            Ok(json!({}))
        });
        jobs.push(submit(&server, Some(thing), work).await);
    }
    let beside = submit(&server, Some(other), Box::pin(async { Ok(json!({})) })).await;
    assert_eq!(finished(&server, beside).await["jobstatus"], 1);
    assert!(order.lock().unwrap().is_empty());
    go.send(()).unwrap();
    for job in jobs {
        assert_eq!(finished(&server, job).await["jobstatus"], 1);
    }
    assert_eq!(*order.lock().unwrap(), vec![0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn what_is_pending_at_a_restart_is_cancelled_and_said_so() {
    let server = Server::start().await;
    let job = submit(&server, None, Box::pin(std::future::pending())).await;
    let server = server.restart().await;
    let seen = query(&server, job).await;
    assert_eq!(seen["jobstatus"], 2);
    let text = "job cancelled because of management server restart or shutdown";
    assert_eq!(seen["jobresult"], json!({ "errorcode": 530, "errortext": text }));
    assert!(seen["completed"].is_string());
}

#[tokio::test]
async fn an_unknown_job_is_a_parameter_error() {
    let server = Server::start().await;
    let error = server.api("queryAsyncJobResult", &[]).await.unwrap_err().to_string();
    let wanted = "Unable to execute API command queryasyncjobresult due to missing parameter jobid (errorcode 431)";
    assert_eq!(error, wanted);
    let id = "0a31f5e2-6b0f-4d0c-9a55-0f0000000000";
    let error = server
        .api("queryAsyncJobResult", &[("jobid", id)])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("Invalid parameter jobid value=0a31f5e2"), "{error}");
}
