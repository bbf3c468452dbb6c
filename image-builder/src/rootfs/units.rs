//! Which units start: the links that `systemctl enable` and `systemctl mask` would make.

use std::collections::BTreeSet;

use super::{BadRoot, put, text};
use crate::recipe::Units;
use crate::tree::{Entry, Tree};

/// Where the links go, and where units of the overlay are.
const SYSTEM: &str = "etc/systemd/system";
/// Where packages have units.
const VENDOR: &str = "usr/lib/systemd/system";

/// What a unit says in `[Install]` (systemd.unit(5)).
#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    upheld_by: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
}

pub(super) fn enable(tree: &mut Tree, units: &Units) -> Result<(), BadRoot> {
    let mut left: Vec<String> = units.enable.iter().rev().cloned().collect();
    let mut done = BTreeSet::new();
    while let Some(unit) = left.pop() {
        if !done.insert(unit.clone()) {
            continue;
        }
        if units.mask.contains(&unit) {
            return Err(BadRoot::BadRecipe(format!("[units] enables and masks {unit}")));
        }
        let file = find(tree, &unit)?;
        let install = Install::parse(text(tree, &file, "enabling a unit")?);
        if install == Install::default() {
            return Err(BadRoot::BadRecipe(format!(
                "[units] enables {unit}, which has nothing in [Install]"
            )));
        }
        let target = format!("/{file}");
        let folders = [
            (&install.wanted_by, "wants"),
            (&install.required_by, "requires"),
            (&install.upheld_by, "upholds"),
        ];
        for (others, kind) in folders {
            for other in others {
                put(
                    tree,
                    &format!("{SYSTEM}/{other}.{kind}/{unit}"),
                    Entry::symlink(&target),
                )?;
            }
        }
        for alias in install.alias.iter().filter(|alias| **alias != unit) {
            put(tree, &format!("{SYSTEM}/{alias}"), Entry::symlink(&target))?;
        }
        let also = install.also.into_iter();
        left.extend(also.filter(|unit| !units.mask.contains(unit)));
    }
    for unit in &units.mask {
        let path = format!("{SYSTEM}/{unit}");
        if tree.get(&path).is_some() {
            return Err(BadRoot::BadRecipe(format!(
                "[units] masks {unit}, which is in /{SYSTEM} itself"
            )));
        }
        find(tree, unit)?;
        put(tree, &path, Entry::symlink("/dev/null"))?;
    }
    Ok(())
}

/// The file of a unit; that of the template for an instance.
fn find(tree: &Tree, unit: &str) -> Result<String, BadRoot> {
    let template = unit.split_once('@').map(|(name, rest)| {
        let kind = rest.rsplit_once('.').map_or("", |(_, kind)| kind);
        format!("{name}@.{kind}")
    });
    for name in [Some(unit), template.as_deref()].into_iter().flatten() {
        for folder in [SYSTEM, VENDOR] {
            let path = format!("{folder}/{name}");
            if tree.get(&path).is_some() {
                return Ok(path);
            }
        }
    }
    Err(BadRoot::BadRecipe(format!(
        "[units] names {unit}, which no package and no overlay has"
    )))
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut install = Self::default();
        let mut is_here = false;
        for line in text.replace("\\\n", " ").lines() {
            let line = line.trim();
            if line.starts_with('[') {
                is_here = line == "[Install]";
            }
            let Some((key, value)) = line.split_once('=').filter(|_| is_here) else {
                continue;
            };
            let list = match key.trim() {
                "WantedBy" => &mut install.wanted_by,
                "RequiredBy" => &mut install.required_by,
                "UpheldBy" => &mut install.upheld_by,
                "Alias" => &mut install.alias,
                "Also" => &mut install.also,
                _ => continue,
            };
            if value.trim().is_empty() {
                list.clear();
            }
            list.extend(value.split_whitespace().map(str::to_owned));
        }
        install
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let unit = "[Unit]\nWantedBy=no\n[Install]\nWantedBy=multi-user.target \\\n other.target\nAlias=b.service\n";
        put(&mut tree, "usr/lib/systemd/system/a.service", Entry::file(0o644, unit)).unwrap();
        let template = "[Install]\nWantedBy=getty.target\nAlso=a.service\n";
        put(
            &mut tree,
            "usr/lib/systemd/system/g@.service",
            Entry::file(0o644, template),
        )
        .unwrap();
        let plain = "[Service]\nExecStart=/bin/true\n";
        put(
            &mut tree,
            "usr/lib/systemd/system/plain.service",
            Entry::file(0o644, plain),
        )
        .unwrap();
        tree
    }

    fn units(enable: &[&str], mask: &[&str]) -> Units {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Units {
            enable: owned(enable),
            mask: owned(mask),
        }
    }

    #[test]
    fn a_unit_is_linked_from_where_it_wants_to_be() {
        let mut tree = tree();
        enable(&mut tree, &units(&["g@tty1.service"], &["plain.service"])).unwrap();
        let links: Vec<(&str, &Entry)> = tree
            .below("etc/")
            .filter(|(path, _)| path.ends_with("service"))
            .collect();
        let a = Entry::symlink("/usr/lib/systemd/system/a.service");
        assert_eq!(
            links,
            [
                ("etc/systemd/system/b.service", &a),
                (
                    "etc/systemd/system/getty.target.wants/g@tty1.service",
                    &Entry::symlink("/usr/lib/systemd/system/g@.service")
                ),
                ("etc/systemd/system/multi-user.target.wants/a.service", &a),
                ("etc/systemd/system/other.target.wants/a.service", &a),
                ("etc/systemd/system/plain.service", &Entry::symlink("/dev/null")),
            ]
        );
    }

    #[test]
    fn what_cannot_start_is_told() {
        let cases = [
            (
                units(&["x.service"], &[]),
                "[units] names x.service, which no package and no overlay has",
            ),
            (
                units(&["plain.service"], &[]),
                "[units] enables plain.service, which has nothing in [Install]",
            ),
            (
                units(&["a.service"], &["a.service"]),
                "[units] enables and masks a.service",
            ),
        ];
        for (units, message) in cases {
            let error = enable(&mut tree(), &units).unwrap_err();
            assert_eq!(error.to_string(), format!("{message}; change it in recipe.toml"));
        }
    }
}
