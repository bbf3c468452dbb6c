//! What this server can do.

use serde_json::{Value, json};

use crate::api::command::Kind::{self, Date, Flag, Fraction, Id, Ids, List, Map, Number, Object, Text};
use crate::api::command::{Call, Command, Field, Outcome, Parameter, Who, optional, ready};
use crate::api::error::{ApiError, Code};
use crate::api::parameters::all_of;
use crate::api::render::CLOUDSTACK_VERSION;
use crate::configuration::DEFAULT_UI_PAGE_SIZE;

pub(super) const COMMANDS: &[Command] = &[
    Command::sync("listApis", "Lists the commands that the caller may use.", |call| {
        ready(list_apis(&call))
    })
    .open_to(Who::User)
    .takes(&[optional("name", Text, "one command")])
    .answers(&[
        Field("name", Text, "the command"),
        Field("description", Text, "what it does"),
        Field("since", Text, "the version it came with"),
        Field("isasync", Flag, "whether it answers with a job"),
        Field("related", Text, "commands about the same things"),
        Field(
            "params",
            Object,
            "what it takes: name, description, type, length, required, related",
        ),
        Field(
            "response",
            Object,
            "fields of what it answers with: name, description, type",
        ),
    ]),
    Command::sync("listCapabilities", "Says what this server can do.", |call| {
        ready(Ok(list_capabilities(&call)))
    })
    .open_to(Who::User)
    .answers(&[
        Field(
            "cloudstackversion",
            Text,
            "version of Apache CloudStack whose API this is",
        ),
        Field("securitygroupsenabled", Flag, "whether there are security groups"),
        Field("dynamicrolesenabled", Flag, "whether there are roles"),
        Field(
            "userpublictemplateenabled",
            Flag,
            "whether users may make templates public",
        ),
        Field("supportELB", Text, "whether there is elastic load balancing"),
        Field("projectinviterequired", Flag, "whether members of projects are invited"),
        Field("allowusercreateprojects", Flag, "whether users may create projects"),
        Field("customdiskofferingminsize", Number, "GB"),
        Field("customdiskofferingmaxsize", Number, "GB"),
        Field(
            "regionsecondaryenabled",
            Flag,
            "whether a region shares secondary storage",
        ),
        Field("kvmsnapshotenabled", Flag, "whether there are snapshots on KVM"),
        Field(
            "snapshotshowchainsize",
            Flag,
            "whether snapshots show the size of their chain",
        ),
        Field("allowuserviewdestroyedvm", Flag, "whether users see destroyed VMs"),
        Field(
            "allowuserexpungerecovervm",
            Flag,
            "whether users may expunge and recover VMs",
        ),
        Field(
            "allowuserexpungerecovervolume",
            Flag,
            "whether users may expunge and recover volumes",
        ),
        Field(
            "allowuserviewalldomainaccounts",
            Flag,
            "whether users see all accounts of their domain",
        ),
        Field("allowuserforcestopvm", Flag, "whether users may stop VMs by force"),
        Field(
            "kubernetesserviceenabled",
            Flag,
            "whether there are Kubernetes clusters",
        ),
        Field(
            "kubernetesclusterexperimentalfeaturesenabled",
            Flag,
            "whether these have experiments",
        ),
        Field("defaultuipagesize", Number, "rows of a page in the web page"),
        Field("instancesstatsretentiontime", Number, "minutes"),
        Field(
            "instancesstatsuseronly",
            Flag,
            "whether statistics are of users' VMs only",
        ),
        Field(
            "instancesdisksstatsretentionenabled",
            Flag,
            "whether statistics of disks are kept",
        ),
        Field("instancesdisksstatsretentiontime", Number, "minutes"),
        Field("sharedfsvmmincpucount", Number, "CPUs"),
        Field("sharedfsvmminramsize", Number, "MiB"),
        Field("instanceleaseenabled", Flag, "whether VMs have leases"),
        Field("dynamicscalingenabled", Flag, "whether running VMs can be scaled"),
        Field(
            "additionalconfigenabled",
            Flag,
            "whether VMs take additional configuration",
        ),
    ]),
];

fn list_apis(call: &Call) -> Result<Outcome, ApiError> {
    let may = |command: &&Command| match command.who {
        Who::Anyone | Who::User => true,
        Who::Admin => call.caller.is_admin(),
    };
    let commands = super::all().filter(may);
    let rows: Vec<Value> = match call.text("name") {
        None => commands.map(describe).collect(),
        Some(name) => {
            let one: Vec<_> = commands
                .filter(|command| command.name.eq_ignore_ascii_case(name))
                .map(describe)
                .collect();
            if one.is_empty() {
                let text = format!("there is no command {name} for this user");
                return Err(ApiError::new(Code::Parameter, text));
            }
            one
        }
    };
    let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    Ok(Outcome::List {
        object: "api",
        count,
        rows,
    })
}

fn describe(command: &'static Command) -> Value {
    let mut response: Vec<Value> = command.answers.iter().map(|field| describe_field(*field)).collect();
    if command.is_async() {
        response.push(describe_field(Field("jobid", Text, "the job, for queryAsyncJobResult")));
        response.push(describe_field(Field(
            "jobstatus",
            Number,
            "0 pending, 1 success, 2 failed",
        )));
    }
    json!({
        "name": command.name,
        "description": command.description,
        "isasync": command.is_async(),
        "since": "0.1",
        "related": "",
        "params": all_of(command).map(describe_parameter).collect::<Vec<_>>(),
        "response": response,
    })
}

fn describe_parameter(parameter: &Parameter) -> Value {
    json!({
        "name": parameter.name,
        "description": parameter.description,
        "type": type_name(parameter.kind),
        "length": 255,
        "required": parameter.is_required,
        "related": "",
    })
}

fn describe_field(Field(name, kind, description): Field) -> Value {
    json!({ "name": name, "description": description, "type": answer_type(kind) })
}

/// apache/cloudstack api/…/api/BaseCmd.java, CommandType, in lower case.
fn type_name(kind: Kind) -> &'static str {
    match kind {
        Text | Object => "string",
        Id => "uuid",
        Flag => "boolean",
        Number => "long",
        Fraction => "double",
        Date => "date",
        List | Ids => "list",
        Map => "map",
    }
}

/// Of fields: simple names of Java classes in lower case, as CloudStack writes them.
fn answer_type(kind: Kind) -> &'static str {
    match kind {
        Text | Id => "string",
        Flag => "boolean",
        Number => "long",
        Fraction => "double",
        Date => "date",
        List | Ids => "list",
        Map => "map",
        Object => "responseobject",
    }
}

fn list_capabilities(call: &Call) -> Outcome {
    let capability = json!({
        "cloudstackversion": CLOUDSTACK_VERSION,
        "securitygroupsenabled": false,
        "dynamicrolesenabled": false,
        "userpublictemplateenabled": true,
        "supportELB": "false",
        "projectinviterequired": false,
        "allowusercreateprojects": false,
        "customdiskofferingminsize": 1,
        "customdiskofferingmaxsize": 1024,
        "regionsecondaryenabled": false,
        "kvmsnapshotenabled": false,
        "snapshotshowchainsize": false,
        "allowuserviewdestroyedvm": false,
        "allowuserexpungerecovervm": false,
        "allowuserexpungerecovervolume": false,
        "allowuserviewalldomainaccounts": false,
        "allowuserforcestopvm": true,
        "kubernetesserviceenabled": false,
        "kubernetesclusterexperimentalfeaturesenabled": false,
        "defaultuipagesize": call.management.configuration.number(&DEFAULT_UI_PAGE_SIZE),
        "instancesstatsretentiontime": 0,
        "instancesstatsuseronly": false,
        "instancesdisksstatsretentionenabled": false,
        "instancesdisksstatsretentiontime": 0,
        "sharedfsvmmincpucount": 0,
        "sharedfsvmminramsize": 0,
        "instanceleaseenabled": false,
        "dynamicscalingenabled": false,
        "additionalconfigenabled": false,
    });
    Outcome::Object("capability", capability)
}
