//! The root file system: what packages bring, what their maintainer scripts would have done, and what the recipe wants.
//!
//! No maintainer script runs. What they would do is known and small (image-pipeline.md §3.2), and is made here from the
//! packages' own data and the recipe; a test compares the result with what `mmdebstrap` makes of the same packages.
//!
//! [`base`] depends on packages and recipe only. [`finish`] adds what is ours, and refuses what must not be in an image.

use bytes::Bytes;

use crate::deb::Deb;
use crate::recipe::Recipe;
use crate::tree::{Entry, Tree, TreeError};

mod certificates;
mod checks;
mod dpkg;
mod libraries;
mod patterns;
mod prune;
mod rules;
#[cfg(test)]
mod tests;
mod units;
mod unpack;
mod users;

pub use patterns::BadPattern;
pub use prune::prune;
use users::Accounts;

/// What the builder puts into the image on top of packages and recipe.
#[derive(Debug, Clone, Default)]
pub struct Additions {
    /// Programs by name. They live in `usr/lib/sysvm/bin`, and `usr/bin` links to them.
    pub programs: Vec<(String, Bytes)>,
    /// Other files: path, permissions, contents.
    pub files: Vec<(String, u32, Bytes)>,
    /// Our own version, for `etc/sysvm-release`.
    pub version: String,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum BadRoot {
    /// Something does not fit into a tree.
    #[error("the root file system is not whole")]
    Tree(#[from] TreeError),
    /// A pattern of the recipe.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// Two packages have a file of the same name.
    #[error("{path} is in the packages {first} and {second}; leave one of them out, or prune the file")]
    Conflict {
        /// The file.
        path: String,
        /// Who had it first.
        first: String,
        /// Who has it, too.
        second: String,
    },
    /// The recipe leaves out a package that nothing brings.
    #[error("the recipe leaves out {0}, which is not among the packages; remove it there")]
    NotThere(String),
    /// A file that packages used to have.
    #[error("{path} is needed for {what}, and no package has it")]
    Missing {
        /// Which.
        path: String,
        /// What for.
        what: String,
    },
    /// A file is not what we read.
    #[error("{path}: {problem}")]
    BadFile {
        /// Which.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The recipe says something that cannot be.
    #[error("{0}; change it in recipe.toml")]
    BadRecipe(String),
    /// What must not be in an image.
    #[error("the image would not be sound:\n  {}", .0.join("\n  "))]
    Unsound(Vec<String>),
}

/// Our programs.
const PROGRAMS: &str = "usr/lib/sysvm/bin";
/// Those that run: these, or those of an upgrade (docs/upgrade.md).
const CURRENT: &str = "usr/lib/sysvm/current";

/// The part that depends on packages and recipe only.
///
/// # Errors
/// Packages and recipe do not fit together.
pub fn base(debs: &[Deb], recipe: &Recipe) -> Result<Tree, BadRoot> {
    let unpacked = unpack::unpack(debs, &recipe.left_out())?;
    let mut tree = unpacked.tree;
    let accounts = Accounts::read(&tree, recipe)?;
    accounts.write(&mut tree, recipe.epoch)?;
    certificates::bundle(&mut tree)?;
    dpkg::write(&mut tree, &unpacked.packages)?;
    rules::apply(&mut tree, recipe, &accounts)?;
    checks::clear_set_id(&mut tree, &recipe.set_id)?;
    prune(&mut tree, recipe)?;
    tree.check()?;
    Ok(tree)
}

/// Puts the overlay and our programs into it, enables the units, and checks the whole.
///
/// # Errors
/// The recipe does not fit, or the image would not be sound.
pub fn finish(mut tree: Tree, recipe: &Recipe, additions: &Additions) -> Result<Tree, BadRoot> {
    let accounts = Accounts::read(&tree, recipe)?;
    rules::overlay(&mut tree, recipe)?;
    // Where the recipe provides for upgrades, people run what units run.
    let run = if tree.get(CURRENT).is_some() { CURRENT } else { PROGRAMS };
    for (name, program) in &additions.programs {
        put(
            &mut tree,
            &format!("usr/bin/{name}"),
            Entry::symlink(format!("/{run}/{name}")),
        )?;
        put(
            &mut tree,
            &format!("{PROGRAMS}/{name}"),
            Entry::file(0o755, program.clone()),
        )?;
    }
    for (path, mode, contents) in &additions.files {
        put(&mut tree, path, Entry::file(*mode, contents.clone()))?;
    }
    for (path, contents) in rules::release_files(recipe, &additions.version)? {
        put(&mut tree, path, Entry::file(0o644, contents))?;
    }
    rules::own_files(&mut tree, recipe, &accounts)?;
    units::enable(&mut tree, &recipe.units)?;
    dpkg::forget_missing(&mut tree);
    tree.check()?;
    checks::check(&tree, recipe)?;
    Ok(tree)
}

/// Puts an entry there, with the directories above it.
fn put(tree: &mut Tree, path: &str, entry: Entry) -> Result<(), TreeError> {
    tree.make_parents(path);
    tree.insert(path, entry)
}

/// The text of a file that must be there.
fn text<'a>(tree: &'a Tree, path: &str, what: &str) -> Result<&'a str, BadRoot> {
    let contents = tree.contents(path).ok_or_else(|| BadRoot::Missing {
        path: path.to_owned(),
        what: what.to_owned(),
    })?;
    str::from_utf8(contents).map_err(|error| BadRoot::BadFile {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}
