//! Messages per second through the codec alone: no socket, no TLS.

use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use protocol::answer::Answer;
use protocol::command::Command;
use protocol::gson::Charset;
use protocol::message::BadMessage;
use protocol::packet::{Packet, Request, Response};
use protocol::secondary_storage::{ListTemplateAnswer, ListTemplateCommand, TemplateProp};
use protocol::session::{HostType, PingCommand, PingStorageCommand};

/// Encodes and decodes a ping, and a list of templates of about 1 MiB, which travels as gzip. Ours only: there is no
/// Java management server on this machine to compare with.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each of the four is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    duration: u64,
}

/// Their answer is a little more than 1 MiB of JSON.
const TEMPLATES: i64 = 3700;

pub(crate) fn measure(args: &Args) -> anyhow::Result<String> {
    let duration = Duration::from_secs(args.duration);
    let mut table = format!(
        "{:<18}{:>9}{:>9}   {:<8}{:>10}{:>9}\n",
        "message", "JSON, B", "sent, B", "", "messages/s", "MB/s"
    );
    for (name, packet) in [
        ("ping", Packet::Request(ping())),
        ("list of templates", Packet::Response(list())),
    ] {
        let body = body_len(&packet);
        let message = encode(&packet)?;
        let sent = message.len();
        let encoded = rate(duration, || drop(black_box(encode(black_box(&packet)))));
        let decoded = rate(duration, || drop(black_box(Packet::decode(black_box(&message)))));
        for (what, rate) in [("encode", encoded), ("decode", decoded)] {
            let megabytes = rate * f64::from(body) / 1e6;
            writeln!(
                table,
                "{name:<18}{body:>9}{sent:>9}   {what:<8}{rate:>10.0}{megabytes:>9.1}"
            )?;
        }
    }
    table.push_str("MB/s counts JSON text. One thread. No peer to compare with runs here.\n");
    Ok(table)
}

fn ping() -> Request {
    let ping = PingStorageCommand {
        ping: PingCommand {
            host_type: Some(HostType::Storage),
            host_id: 3,
            ..PingCommand::default()
        },
        ..PingStorageCommand::default()
    };
    Request::from_agent(1, 3, Command::new(ping))
}

fn list() -> Response {
    let templates = (0..TEMPLATES).map(|id| {
        let name = format!("{id}-2-0f1e2d3c-4b5a-3978-8695-{:012x}", id * 0x9e37_79b9);
        let template = TemplateProp {
            install_path: Some(format!("template/tmpl/2/{id}/{name}.qcow2")),
            template_name: Some(name.clone()),
            size: 10 << 30,
            physical_size: (1 << 30) + id * 4096,
            id,
            is_public: true,
            is_corrupted: false,
        };
        (name, template)
    });
    let answer = ListTemplateAnswer {
        sec_url: Some("nfs://10.1.4.2/export/secondary".to_owned()),
        template_infos: Some(templates.collect::<IndexMap<_, _>>()),
    };
    let request = Request::from_server(1, 1, 3, vec![Command::new(ListTemplateCommand::default())]);
    request.response(vec![Answer::new(answer)])
}

fn encode(packet: &Packet) -> Result<Vec<u8>, BadMessage> {
    match packet {
        Packet::Request(request) => request.encode(Charset::Ascii),
        Packet::Response(response) => response.encode(Charset::Ascii),
    }
}

/// Length of the JSON text.
fn body_len(packet: &Packet) -> u32 {
    let text = match packet {
        Packet::Request(request) => Command::write_all(&request.commands, Charset::Ascii),
        Packet::Response(response) => Answer::write_all(&response.answers, Charset::Ascii),
    };
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// How often `work` can be done in a second.
fn rate(duration: Duration, work: impl Fn()) -> f64 {
    let (mut count, mut warm) = (0_u32, false);
    let mut started = Instant::now();
    loop {
        work();
        count += 1;
        let elapsed = started.elapsed();
        if !warm && elapsed > duration / 10 {
            (count, warm, started) = (0, true, Instant::now());
        } else if elapsed > duration {
            return f64::from(count) / elapsed.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_are_what_the_table_says() {
        let (ping, list) = (Packet::Request(ping()), Packet::Response(list()));
        assert!(
            (1 << 20..(1 << 20) + (1 << 17)).contains(&body_len(&list)),
            "{}",
            body_len(&list)
        );
        for packet in [ping, list] {
            let message = encode(&packet).unwrap();
            let again = encode(&Packet::decode(&message).unwrap()).unwrap();
            assert!(again == message, "{} and {} bytes", again.len(), message.len());
        }
    }

    #[test]
    fn a_rate_is_per_second() {
        let nap = || std::thread::sleep(Duration::from_millis(5));
        let rate = rate(Duration::from_millis(20), nap);
        assert!((f64::MIN_POSITIVE..=200.0).contains(&rate), "{rate}");
    }
}
