//! Users and groups: base-passwd's, and the recipe's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{BadRoot, put, text};
use crate::recipe::Recipe;
use crate::tree::{Entry, Tree};

const PASSWD: &str = "usr/share/base-passwd/passwd.master";
const GROUP: &str = "usr/share/base-passwd/group.master";
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
/// What sysusers.d(5) reads.
const SYSUSERS: [&str; 2] = ["usr/lib/sysusers.d/", "etc/sysusers.d/"];

/// Users and groups of the image.
#[derive(Debug, Clone)]
pub(super) struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    /// Comment, home and shell, as in passwd(5).
    rest: String,
}

#[derive(Debug, Clone)]
struct Group {
    name: String,
    gid: u32,
    members: String,
}

impl Accounts {
    pub(super) fn read(tree: &Tree, recipe: &Recipe) -> Result<Self, BadRoot> {
        let mut groups = Vec::new();
        for line in lines(tree, GROUP)? {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members] = fields.as_slice() else {
                return Err(bad(GROUP, line));
            };
            groups.push(Group {
                name: (*name).to_owned(),
                gid: gid.parse().map_err(|_| bad(GROUP, line))?,
                members: (*members).to_owned(),
            });
        }
        groups.extend(recipe.groups.iter().map(|(name, gid)| {
            Group {
                name: name.clone(),
                gid: *gid,
                members: recipe
                    .members
                    .get(name)
                    .map_or_else(String::new, |names| names.join(",")),
            }
        }));
        let mut users = Vec::new();
        for line in lines(tree, PASSWD)? {
            let fields: Vec<&str> = line.splitn(5, ':').collect();
            let [name, _, uid, gid, rest] = fields.as_slice() else {
                return Err(bad(PASSWD, line));
            };
            users.push(Account {
                name: (*name).to_owned(),
                uid: uid.parse().map_err(|_| bad(PASSWD, line))?,
                gid: gid.parse().map_err(|_| bad(PASSWD, line))?,
                rest: (*rest).to_owned(),
            });
        }
        let mut accounts = Self { users, groups };
        for (name, user) in &recipe.users {
            let account = Account {
                name: name.clone(),
                uid: user.id,
                gid: accounts.gid(&user.group)?,
                rest: format!("{}:{}:{}", user.comment, user.home, user.shell),
            };
            accounts.users.push(account);
        }
        accounts.check()?;
        Ok(accounts)
    }

    /// A user's number.
    pub(super) fn uid(&self, name: &str) -> Result<u32, BadRoot> {
        let user = self.users.iter().find(|user| user.name == name);
        Ok(user
            .ok_or_else(|| BadRoot::BadRecipe(format!("there is no user {name:?}")))?
            .uid)
    }

    /// A group's number.
    pub(super) fn gid(&self, name: &str) -> Result<u32, BadRoot> {
        let group = self.groups.iter().find(|group| group.name == name);
        Ok(group
            .ok_or_else(|| BadRoot::BadRecipe(format!("there is no group {name:?}")))?
            .gid)
    }

    /// Writes passwd, group, shadow and gshadow. Nobody has a password that could be right.
    pub(super) fn write(&self, tree: &mut Tree, epoch: u64) -> Result<(), BadRoot> {
        self.check_sysusers(tree)?;
        let (mut passwd, mut shadow) = (String::new(), String::new());
        let changed = epoch / SECONDS_PER_DAY;
        for Account { name, uid, gid, rest } in &self.users {
            line(&mut passwd, format_args!("{name}:x:{uid}:{gid}:{rest}"));
            line(&mut shadow, format_args!("{name}:*:{changed}:0:99999:7:::"));
        }
        let (mut group, mut gshadow) = (String::new(), String::new());
        for Group { name, gid, members } in &self.groups {
            line(&mut group, format_args!("{name}:x:{gid}:{members}"));
            line(&mut gshadow, format_args!("{name}:*::{members}"));
        }
        let readers = self.gid("shadow")?;
        put(tree, "etc/passwd", Entry::file(0o644, passwd))?;
        put(tree, "etc/group", Entry::file(0o644, group))?;
        put(tree, "etc/shadow", Entry::file(0o640, shadow).owned(0, readers))?;
        put(tree, "etc/gshadow", Entry::file(0o640, gshadow).owned(0, readers))?;
        Ok(())
    }

    fn check(&self) -> Result<(), BadRoot> {
        unique("user", self.users.iter().map(|user| (&user.name, user.uid)))?;
        unique("group", self.groups.iter().map(|group| (&group.name, group.gid)))
    }

    /// Packages say in sysusers.d which users and groups their services need: all must be there, since nothing makes
    /// them later.
    fn check_sysusers(&self, tree: &Tree) -> Result<(), BadRoot> {
        for folder in SYSUSERS {
            for (path, _) in tree.below(folder) {
                for line in lines(tree, path)? {
                    let mut words = line.split_whitespace();
                    let (Some(kind), Some(name)) = (words.next(), words.next()) else {
                        continue;
                    };
                    let wants = |what| BadRoot::BadRecipe(format!("{path} wants the {what} {name:?}"));
                    match kind.trim_end_matches('!') {
                        "u" => self.uid(name).map(drop).map_err(|_| wants("user"))?,
                        "g" => self.gid(name).map(drop).map_err(|_| wants("group"))?,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}

fn unique<'a>(what: &str, accounts: impl Iterator<Item = (&'a String, u32)>) -> Result<(), BadRoot> {
    let (mut names, mut ids) = (BTreeMap::new(), BTreeMap::new());
    for (name, id) in accounts {
        if names.insert(name, id).is_some() {
            return Err(BadRoot::BadRecipe(format!("there are two {what}s {name:?}")));
        }
        if let Some(other) = ids.insert(id, name) {
            return Err(BadRoot::BadRecipe(format!(
                "the {what}s {other:?} and {name:?} have the number {id}"
            )));
        }
    }
    Ok(())
}

/// Lines that are neither empty nor comments.
fn lines<'a>(tree: &'a Tree, path: &str) -> Result<impl Iterator<Item = &'a str>, BadRoot> {
    let text = text(tree, path, "users and groups")?;
    Ok(text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#')))
}

fn bad(path: &str, line: &str) -> BadRoot {
    BadRoot::BadFile {
        path: path.to_owned(),
        problem: format!("{line:?} describes no user or group"),
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a text takes more text");
}
