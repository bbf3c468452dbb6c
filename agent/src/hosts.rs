//! Which management server to connect to, and when to try again (agent-protocol.md §1.4).

use std::time::Duration;

use protocol::boot::HostList;

/// The management servers an agent knows.
#[derive(Debug, Clone)]
pub struct Hosts {
    list: HostList,
    /// Not to be used now.
    avoided: Vec<String>,
    next: usize,
    /// Attempts in a row that failed.
    failures: usize,
}

impl Hosts {
    /// Starts at the first host.
    pub fn new(list: HostList) -> Self {
        Self {
            list,
            avoided: Vec::new(),
            next: 0,
            failures: 0,
        }
    }

    /// The next host to try: in turn, without those to avoid. When all are to be avoided the list is followed anyway:
    /// an agent without a server helps nobody.
    pub fn next_host(&mut self) -> Option<String> {
        let hosts = &self.list.hosts;
        let turn = (0..hosts.len()).map(|step| (self.next + step) % hosts.len());
        let usable = turn.clone().find(|index| !self.avoided.contains(&hosts[*index]));
        let index = usable.or_else(|| turn.clone().next())?;
        self.next = index + 1;
        Some(hosts[index].clone())
    }

    /// The next call of [`Hosts::next_host`] gives this host.
    pub fn continue_with(&mut self, host: &str) {
        if let Some(index) = self.list.hosts.iter().position(|known| known == host) {
            self.next = index;
        }
    }

    /// The first host that is not to be avoided: where the server wants this agent.
    pub fn first_usable(&self) -> Option<&str> {
        self.list
            .hosts
            .iter()
            .find(|host| !self.avoided.contains(host))
            .map(String::as_str)
    }

    /// The list in the form in which it is kept and reported: `a,b@algorithm`.
    pub fn list(&self) -> &HostList {
        &self.list
    }

    /// A new list from the server. Answers whether it is a change.
    pub fn replace(&mut self, list: HostList) -> bool {
        if list == self.list {
            return false;
        }
        self.list = list;
        self.next = 0;
        true
    }

    /// An attempt failed. Once all usable hosts have failed, those to avoid are tried as well: the wish to avoid them may
    /// be long out of date, and only a server can take it back.
    pub fn failed(&mut self) {
        self.failures += 1;
        let usable = self
            .list
            .hosts
            .iter()
            .filter(|host| !self.avoided.contains(host))
            .count();
        if self.failures >= usable {
            self.avoided.clear();
        }
    }

    /// An attempt succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Replaces the hosts to avoid.
    pub fn avoid(&mut self, hosts: Vec<String>) {
        self.avoided = hosts;
    }
}

/// How long to wait between two attempts: doubling up to a limit, spread so that thousands of agents do not come back
/// in the same second.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// Waits `first` after the first failure and never longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts: 0,
        }
    }

    /// The link works: the next failure is a first one.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait now; `jitter` (0 to 255) moves it by up to a quarter to both sides.
    pub fn next_delay(&mut self, jitter: u8) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        doubled.min(self.longest).mul_f64(0.75 + f64::from(jitter) / 510.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &str) -> Hosts {
        Hosts::new(list.parse().unwrap())
    }

    fn take(hosts: &mut Hosts, count: usize) -> Vec<String> {
        (0..count).map(|_| hosts.next_host().unwrap()).collect()
    }

    #[test]
    fn hosts_are_tried_in_turn() {
        assert_eq!(
            take(&mut hosts("10.1.1.2,10.1.1.3"), 3),
            ["10.1.1.2", "10.1.1.3", "10.1.1.2"]
        );
    }

    #[test]
    fn avoided_hosts_are_skipped_unless_there_is_no_other() {
        let mut some = hosts("a,b,c");
        some.avoid(vec!["b".into()]);
        assert_eq!(take(&mut some, 3), ["a", "c", "a"]);
        assert_eq!(some.first_usable(), Some("a"));
        some.avoid(vec!["a".into(), "b".into(), "c".into()]);
        assert_eq!(take(&mut some, 3), ["b", "c", "a"]);
        assert_eq!(some.first_usable(), None);
    }

    #[test]
    fn avoided_hosts_are_tried_once_all_others_have_failed() {
        let mut some = hosts("a,b,c");
        some.avoid(vec!["a".into()]);
        assert_eq!(take(&mut some, 2), ["b", "c"]);
        some.failed();
        assert_eq!(some.first_usable(), Some("b"));
        some.failed();
        assert_eq!(take(&mut some, 1), ["a"]);
        some.succeeded();
        some.avoid(vec!["a".into()]);
        some.failed();
        assert_eq!(some.first_usable(), Some("b"), "success starts the count again");
    }

    #[test]
    fn a_new_list_starts_at_its_first_host() {
        let mut some = hosts("a,b");
        take(&mut some, 1);
        assert!(!some.replace("a,b".parse().unwrap()));
        assert!(some.replace("c,a@static".parse().unwrap()));
        assert_eq!(some.list().to_string(), "c,a@static");
        assert_eq!(take(&mut some, 2), ["c", "a"]);
        some.continue_with("c");
        assert_eq!(take(&mut some, 1), ["c"]);
    }

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_starts_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(1));
        let seconds: Vec<String> = (0..6)
            .map(|_| format!("{:.0}", backoff.next_delay(128).as_secs_f64()))
            .collect();
        assert_eq!(seconds, ["5", "10", "20", "40", "60", "60"]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0), Duration::from_millis(3750));
        assert_eq!(backoff.next_delay(255), Duration::from_millis(12_500));
    }
}
