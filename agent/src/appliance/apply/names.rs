//! NICs get their names by hardware address: the first of `nic_macs` is `eth0` (§3.4). Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use protocol::boot::MacAddr;

use crate::appliance::plan::current::CurrentLink;

/// Names on the way from one to another: a NIC called so had its renaming cut off, and gets its name the next time.
const ON_THE_WAY: usize = 1000;

/// Lines for `ip -batch -`; empty when all names are right. A NIC that has another's name gets a free one. What is
/// renamed is down afterwards.
pub fn renames(links: &[CurrentLink], macs: &[MacAddr]) -> String {
    let mac_of = |link: &CurrentLink| link.mac.and_then(|mac| macs.iter().position(|wanted| *wanted == mac));
    let is_reserved = |name: &str| (0..macs.len()).any(|index| name == eth(index));
    let mut taken: BTreeSet<String> = links.iter().map(|link| link.name.clone()).collect();
    taken.extend((0..macs.len()).map(eth));
    let mut moves = Vec::new();
    let mut named = BTreeSet::new();
    for link in links {
        let wanted = match mac_of(link).filter(|index| named.insert(*index)) {
            Some(index) => eth(index),
            // Not in the list, with a name that is somebody else's.
            None if is_reserved(&link.name) || is_on_the_way(&link.name) => {
                // At most all present names and as many new ones are taken.
                let numbers = macs.len()..=macs.len() + 2 * links.len();
                let mut names = numbers.map(eth);
                let free = names.find(|name| !taken.contains(name));
                let free = free.expect("there are more numbers than NICs");
                taken.insert(free.clone());
                free
            }
            None => link.name.clone(),
        };
        if wanted != link.name {
            moves.push((link.name.as_str(), wanted));
        }
    }
    let mut batch = String::new();
    for (number, (from, _)) in moves.iter().enumerate() {
        let between = eth(free_on_the_way(links, number));
        writeln!(batch, "link set dev {from} down\nlink set dev {from} name {between}")
            .expect("a String takes everything");
    }
    for (number, (_, to)) in moves.iter().enumerate() {
        let between = eth(free_on_the_way(links, number));
        writeln!(batch, "link set dev {between} name {to}").expect("a String takes everything");
    }
    batch
}

fn eth(index: usize) -> String {
    format!("eth{index}")
}

/// The one with this number among the names on the way that nobody has.
fn free_on_the_way(links: &[CurrentLink], number: usize) -> usize {
    let mut free = (ON_THE_WAY..).filter(|index| !links.iter().any(|link| link.name == eth(*index)));
    free.nth(number).expect("there are more numbers than NICs")
}

fn is_on_the_way(name: &str) -> bool {
    let number = name.strip_prefix("eth").and_then(|number| number.parse::<usize>().ok());
    number.is_some_and(|number| number >= ON_THE_WAY)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn mac(number: usize) -> MacAddr {
        format!("02:00:5e:10:00:{number:02x}").parse().unwrap()
    }

    fn link(name: &str, number: usize) -> CurrentLink {
        CurrentLink {
            name: name.to_owned(),
            mac: Some(mac(number)),
            is_up: true,
            mtu: 1500,
            ipv4: Vec::new(),
            ipv6: Vec::new(),
        }
    }

    /// What ip(8) would do; a name that is taken is an error there.
    fn after(links: &[CurrentLink], batch: &str) -> BTreeMap<String, Option<MacAddr>> {
        let mut names: BTreeMap<_, _> = links.iter().map(|link| (link.name.clone(), link.mac)).collect();
        for line in batch.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["link", "set", "dev", name, "down"] => assert!(names.contains_key(name)),
                ["link", "set", "dev", from, "name", to] => {
                    let moved = names.remove(from).unwrap();
                    assert_eq!(names.insert(to.to_owned(), moved), None, "{to} is taken");
                }
                _ => panic!("{line}"),
            }
        }
        names
    }

    #[test]
    fn two_nics_in_the_wrong_order_change_places() {
        let links = [link("eth0", 1), link("eth1", 0)];
        assert_eq!(
            renames(&links, &[mac(0), mac(1)]),
            "link set dev eth0 down\nlink set dev eth0 name eth1000\nlink set dev eth1 down\n\
             link set dev eth1 name eth1001\nlink set dev eth1000 name eth1\nlink set dev eth1001 name eth0\n"
        );
        assert_eq!(renames(&links, &[mac(1), mac(0)]), "");
        assert_eq!(renames(&links, &[]), "");
    }

    #[test]
    fn a_nic_that_nobody_named_makes_room() {
        let links = [link("eth0", 7), link("eth1", 0)];
        let names = after(&links, &renames(&links, &[mac(0)]));
        assert_eq!(names["eth0"], Some(mac(0)));
        assert_eq!(names["eth2"], Some(mac(7)));
    }

    proptest! {
        #[test]
        fn every_nic_of_the_list_gets_its_name_and_a_second_time_changes_nothing(
            order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(), wanted in 0..8_usize,
            cut in prop::collection::vec(any::<bool>(), 8),
        ) {
            let name = |at: usize| if cut[at] { eth(ON_THE_WAY + at) } else { eth(at) };
            let links: Vec<_> = order.iter().enumerate().map(|(at, number)| link(&name(at), *number)).collect();
            let macs: Vec<_> = (0..wanted).map(mac).collect();
            let names = after(&links, &renames(&links, &macs));
            prop_assert_eq!(names.len(), links.len());
            for (index, mac) in macs.iter().enumerate() {
                prop_assert_eq!(names[&eth(index)], Some(*mac));
            }
            let links: Vec<_> = names.iter().map(|(name, mac)| CurrentLink { mac: *mac, ..link(name, 0) }).collect();
            prop_assert_eq!(renames(&links, &macs), "");
        }
    }
}
