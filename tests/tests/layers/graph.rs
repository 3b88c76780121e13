//! Which module uses which, by where the names that it writes are defined, whatever re-exports they
//! pass.

use std::collections::{BTreeMap, BTreeSet};

use crate::modules::{Crate, ModulePath};

/// Most re-exports that are followed for one name.
const MAX_REEXPORTS: usize = 16;

/// One module uses what another defines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    pub(crate) user: ModulePath,
    pub(crate) used: ModulePath,
    /// The path that is written.
    pub(crate) path: String,
}

impl Use {
    pub(crate) fn show(&self) -> String {
        format!("{} -> {} ({})", self.user.join("::"), self.used.join("::"), self.path)
    }

    /// The module in which both are, and the child of it that each of the two is in; `None` when
    /// one contains the other.
    fn siblings(&self) -> Option<(ModulePath, String, String)> {
        let common = self.user.iter().zip(&self.used).take_while(|(a, b)| a == b).count();
        let (user, used) = (self.user.get(common)?, self.used.get(common)?);
        Some((self.user[..common].to_vec(), user.clone(), used.clone()))
    }
}

/// Every use of one module by another.
pub(crate) fn uses(of: &Crate) -> BTreeSet<Use> {
    let mut found = BTreeSet::new();
    for (user, module) in &of.modules {
        for path in &module.paths {
            if let Some(used) = defines(of, user, path, 0)
                && used != *user
            {
                found.insert(Use { user: user.clone(), used, path: path.join("::") });
            }
        }
    }
    found
}

/// The module that defines what `path` names when it is written in `module`; `None` when that is
/// another crate's.
fn defines(of: &Crate, module: &[String], path: &[String], depth: usize) -> Option<ModulePath> {
    let (first, rest) = path.split_first()?;
    let child = |name: &String| [module, std::slice::from_ref(name)].concat();
    match first.as_str() {
        "crate" => descend(of, vec![], rest, depth),
        "self" => descend(of, module.to_vec(), rest, depth),
        "super" => descend(of, module.split_last()?.1.to_vec(), rest, depth),
        _ if of.modules.contains_key(&child(first)) => descend(of, child(first), rest, depth),
        _ => {
            let Some(imported) = of.modules[module].imports.get(first) else {
                return through_globs(of, module, first, depth);
            };
            // `use http;` and the like: a name that stands for itself is a crate's.
            let first_of_import = imported.first()?;
            let is_local = first_of_import != first && depth < MAX_REEXPORTS;
            is_local.then(|| defines(of, module, &[imported, rest].concat(), depth + 1))?
        }
    }
}

/// Follows `path` from `module` through children and re-exports to the module that defines its last
/// local name.
fn descend(of: &Crate, module: ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
    let Some((name, rest)) = path.split_first() else { return Some(module) };
    if name == "super" {
        return descend(of, module.split_last()?.1.to_vec(), rest, depth);
    }
    let child = [module.as_slice(), std::slice::from_ref(name)].concat();
    if of.modules.contains_key(&child) {
        return descend(of, child, rest, depth);
    }
    let here = &of.modules[&module];
    if here.items.contains(name) || depth >= MAX_REEXPORTS {
        return Some(module);
    }
    if let Some(imported) = here.imports.get(name) {
        return defines(of, &module, imported, depth + 1);
    }
    Some(through_globs(of, &module, name, depth).unwrap_or(module))
}

/// The module that defines `name`, when `module` imports it by a `*`.
fn through_globs(of: &Crate, module: &[String], name: &String, depth: usize) -> Option<ModulePath> {
    of.modules[module].globs.iter().filter(|_| depth < MAX_REEXPORTS).find_map(|glob| {
        let target = defines(of, module, glob, depth + 1)?;
        let there = &of.modules[&target];
        let has = there.items.contains(name) || there.imports.contains_key(name);
        has.then(|| descend(of, target, std::slice::from_ref(name), depth + 1))?
    })
}

/// For each module with children: which child uses which other, with an example.
pub(crate) type Siblings = BTreeMap<ModulePath, BTreeMap<(String, String), Use>>;

pub(crate) fn siblings(uses: &BTreeSet<Use>) -> Siblings {
    let mut found = Siblings::new();
    for one in uses {
        if let Some((parent, user, used)) = one.siblings() {
            found.entry(parent).or_default().entry((user, used)).or_insert_with(|| one.clone());
        }
    }
    found
}

/// A cycle among siblings, as the uses that make it; `None` when there is none.
pub(crate) fn cycle(edges: &BTreeMap<(String, String), Use>) -> Option<Vec<&Use>> {
    let mut done = BTreeSet::new();
    let starts: BTreeSet<_> = edges.keys().map(|(user, _)| user).collect();
    starts.into_iter().find_map(|start| follow(edges, start, &mut vec![], &mut done))
}

fn follow<'a>(
    edges: &'a BTreeMap<(String, String), Use>,
    at: &'a String,
    path: &mut Vec<(&'a String, &'a Use)>,
    done: &mut BTreeSet<&'a String>,
) -> Option<Vec<&'a Use>> {
    if let Some(begin) = path.iter().position(|(module, _)| *module == at) {
        return Some(path[begin..].iter().map(|(_, one)| *one).collect());
    }
    if done.contains(at) {
        return None;
    }
    for ((user, used), one) in edges {
        if user == at {
            path.push((at, one));
            if let Some(found) = follow(edges, used, path, done) {
                return Some(found);
            }
            path.pop();
        }
    }
    done.insert(at);
    None
}
