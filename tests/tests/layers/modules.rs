//! The modules of a crate, as its sources declare them: what each defines, imports and names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{Item, UseTree, visit::Visit};

/// The path of a module from its crate's root; empty for the root.
pub(crate) type ModulePath = Vec<String>;

/// One file: names by which other modules find what it defines, and the paths that it writes.
#[derive(Default)]
pub(crate) struct Module {
    /// Names of the items that the module defines.
    pub(crate) items: BTreeSet<String>,
    /// What a name that the module imports stands for, as written.
    pub(crate) imports: BTreeMap<String, Vec<String>>,
    /// Modules whose names are all imported.
    pub(crate) globs: Vec<Vec<String>>,
    /// Every path that the module writes, imports included.
    pub(crate) paths: BTreeSet<Vec<String>>,
}

/// A crate's modules. Tests inside them aren't read.
pub(crate) struct Crate {
    pub(crate) modules: BTreeMap<ModulePath, Module>,
}

impl Crate {
    /// Reads the crate with the root file `root` from disk.
    pub(crate) fn read(root: &Path) -> Self {
        let folder = root.parent().unwrap();
        Self::load(&|path| {
            if path.is_empty() {
                return fs::read_to_string(root).unwrap();
            }
            let file = folder.join(path.join("/")).with_extension("rs");
            fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        })
    }

    /// Reads the root, then each module that a file declares.
    pub(crate) fn load(source: &dyn Fn(&[String]) -> String) -> Self {
        let (mut modules, mut left) = (BTreeMap::new(), vec![ModulePath::new()]);
        while let Some(path) = left.pop() {
            let file = syn::parse_file(&source(&path)).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let mut module = Module::default();
            for item in file.items.iter().filter(|item| !is_for_tests(attributes(item))) {
                match item {
                    Item::Mod(child) if child.content.is_none() => {
                        left.push([path.as_slice(), &[child.ident.to_string()]].concat());
                    }
                    Item::Use(item) => module.import(&item.tree, &[]),
                    _ => module.define(item),
                }
            }
            modules.insert(path, module);
        }
        Self { modules }
    }
}

impl Module {
    fn import(&mut self, tree: &UseTree, before: &[String]) {
        let joined = |name: &dyn ToString| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &joined(&path.ident)),
            UseTree::Name(name) if name.ident == "self" => self.bind(before.last().unwrap().clone(), before.to_vec()),
            UseTree::Name(name) => self.bind(name.ident.to_string(), joined(&name.ident)),
            UseTree::Rename(name) if name.ident == "self" => self.bind(name.rename.to_string(), before.to_vec()),
            UseTree::Rename(name) => self.bind(name.rename.to_string(), joined(&name.ident)),
            UseTree::Glob(_) => {
                self.paths.insert(before.to_vec());
                self.globs.push(before.to_vec());
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.import(item, before)),
        }
    }

    fn bind(&mut self, name: String, path: Vec<String>) {
        self.paths.insert(path.clone());
        self.imports.insert(name, path);
    }

    fn define(&mut self, item: &Item) {
        self.items.extend(name_of(item));
        Paths(self).visit_item(item);
    }
}

fn name_of(item: &Item) -> Option<String> {
    Some(match item {
        Item::Const(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Macro(item) => item.ident.as_ref()?.to_string(),
        Item::Mod(item) => item.ident.to_string(),
        Item::Static(item) => item.ident.to_string(),
        Item::Struct(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Union(item) => item.ident.to_string(),
        _ => return None,
    })
}

/// Collects the paths of an item, those inside the arguments of macros too.
struct Paths<'a>(&'a mut Module);

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.paths.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // Inside a function or an inline module: `self` and `super` are rare there, `crate` is not.
        self.0.import(&item.tree, &[]);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let text = item.tokens.to_string().replace(" :: ", "::");
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        let paths = words.filter(|word| word.contains("::")).map(|word| word.trim_matches(':'));
        self.0.paths.extend(paths.map(|path| path.split("::").map(str::to_owned).collect::<Vec<_>>()));
        syn::visit::visit_macro(self, item);
    }
}

/// Whether an item is compiled for tests alone.
fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let condition = list.tokens.to_string();
        list.path.is_ident("cfg") && (condition.starts_with("test") || condition.starts_with("any (test"))
    })
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
