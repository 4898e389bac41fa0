//! Reads declared keys out of collected values, and remembers what was declared and what was wrong.
//!
//! A key is declared by reading it: the same call gives its type, default and documentation. So a run over no values
//! lists all keys, which is how the unknown-key check and the reference page know them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::files;
use super::kind::{Kind, Secrecy, Shape};
use super::problem::{Place, Problem};
use super::value::{Data, Value};

/// The values that were set, by path such as `tls.key_file`; of each the one that wins.
pub(super) type Values = BTreeMap<String, Value>;

/// A declared section and its keys, in the order of declaration.
pub(super) struct Section {
    pub(super) about: String,
    pub(super) form: Form,
    pub(super) keys: Vec<Key>,
    /// Empty for the keys above all sections.
    pub(super) name: &'static str,
}

/// How a section is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `[name]`, once.
    Single,
    /// `[[name]]`, any number of times; in the file only.
    Repeated,
}

pub(super) struct Key {
    pub(super) about: String,
    /// As TOML; empty for none.
    pub(super) default: String,
    pub(super) kind: String,
    pub(super) name: String,
}

/// The path of a key.
pub(super) fn path_of(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// The path of one table of a repeated section.
pub(super) fn table_path(section: &str, index: usize) -> String {
    format!("{section}.{index}")
}

pub(super) struct Reader {
    broken: BTreeSet<String>,
    pub(super) problems: Vec<Problem>,
    pub(super) sections: Vec<Section>,
    /// Which table of a repeated section is being read.
    table: Option<usize>,
    values: Values,
}

impl Reader {
    pub(super) fn new(values: Values, problems: Vec<Problem>) -> Self {
        Self { broken: BTreeSet::new(), problems, sections: Vec::new(), table: None, values }
    }

    pub(super) fn into_values(self) -> Values {
        self.values
    }

    /// Declares a section; the keys that follow belong to it.
    pub(super) fn section(&mut self, name: &'static str, about: &str) {
        self.sections.push(Section { about: about.trim().to_owned(), form: Form::Single, keys: Vec::new(), name });
    }

    /// Declares a repeated section and reads each of its tables with `read`, in order.
    pub(super) fn tables<T>(
        &mut self,
        name: &'static str,
        about: &str,
        mut read: impl FnMut(&mut Self) -> T,
    ) -> Vec<T> {
        self.section(name, about);
        if let Some(section) = self.sections.last_mut() {
            section.form = Form::Repeated;
        }
        let count = (0..).take_while(|index| self.values.contains_key(&table_path(name, *index))).count();
        // Read once more, behind the last: that declares the keys where there is no table.
        let tables = (0..=count).map(|index| {
            self.table = Some(index);
            read(self)
        });
        let mut tables: Vec<T> = tables.collect();
        tables.pop();
        self.table = None;
        tables
    }

    /// Where the table begins that is being read.
    pub(super) fn table_place(&self) -> Option<Place> {
        let path = table_path(self.sections.last()?.name, self.table?);
        self.values.get(&path).map(|value| value.place.clone())
    }

    /// Reports a problem of a table, at the place of the key if it is set, else of the table.
    pub(super) fn blame_table(&mut self, section: &str, index: usize, key: &str, text: String) {
        let table = table_path(section, index);
        self.blame(&[&path_of(&table, key), &table], text);
    }

    /// Declares a key and reads it. A wrong value is reported and replaced by the default, so that reading goes on.
    pub(super) fn key<T>(&mut self, name: &str, about: &str, kind: Kind<T>, default: &'static str) -> T {
        let path = self.declare(name, about, &kind, default);
        let value = match kind.secrecy {
            Secrecy::Open => self.values.get(&path).cloned(),
            Secrecy::Secret => self.secret_value(name, &path),
        };
        if let Some(value) = value {
            match (kind.parse)(&value) {
                Ok(parsed) => return parsed,
                Err(problems) => self.refuse(&path, problems),
            }
        }
        match (kind.parse)(&Value::raw(default, Place::Default)) {
            Ok(parsed) => parsed,
            // Defaults are constants, and every one is parsed by every run of every test.
            Err(problems) => unreachable!("default of {path}: {problems:?}"),
        }
    }

    fn declare<T>(&mut self, name: &str, about: &str, kind: &Kind<T>, default: &str) -> String {
        // `section` comes before its keys in the one macro that calls both.
        let section = self.sections.last_mut().expect("keys follow a section");
        let path = match self.table {
            Some(index) => path_of(&table_path(section.name, index), name),
            None => path_of(section.name, name),
        };
        if section.keys.iter().any(|key| key.name == name) {
            return path;
        }
        let about = about.trim().to_owned();
        section.keys.push(Key {
            about,
            default: show(default, kind.shape),
            kind: kind.text.clone(),
            name: name.into(),
        });
        if kind.secrecy == Secrecy::Secret {
            let about = format!("File that holds `{name}` instead; one trailing newline is not part of it.");
            let name = format!("{name}_file");
            section.keys.push(Key { about, default: String::new(), kind: "path".into(), name });
        }
        path
    }

    /// A secret's value from its key or from the file that its twin names.
    fn secret_value(&mut self, name: &str, path: &str) -> Option<Value> {
        let twin = format!("{path}_file");
        let (given, file) = (self.values.get(path).cloned(), self.values.get(&twin).cloned());
        let (value, file) = match (given, file) {
            (value, None) => return value,
            (Some(_), Some(file)) => (Err(format!("give either {name} or {name}_file, not both")), file),
            (None, Some(file)) => match &file.data {
                Data::Raw(text) | Data::Text(text) if text.is_empty() => return None,
                Data::Raw(text) | Data::Text(text) => {
                    (files::read_secret(Path::new(text)).map_err(|reason| format!("{text}: {reason}")), file)
                }
                _ => (Err(format!("expected a string, found {}", file.type_name())), file),
            },
        };
        match value {
            Ok(text) => Some(Value::raw(text, file.place)),
            Err(text) => {
                self.refuse(&twin, vec![Problem { place: file.place, text }]);
                self.broken.insert(path.to_owned());
                None
            }
        }
    }

    fn refuse(&mut self, path: &str, problems: Vec<Problem>) {
        self.broken.insert(path.to_owned());
        // Of a repeated section the place tells which table it is.
        let shown = match (self.sections.last(), path.rsplit_once('.')) {
            (Some(section), Some((_, key))) if section.form == Form::Repeated => path_of(section.name, key),
            _ => path.to_owned(),
        };
        self.problems.extend(
            problems.into_iter().map(|problem| Problem { text: format!("{shown}: {}", problem.text), ..problem }),
        );
    }

    /// Whether all these keys hold what was configured, not a default in the place of a wrong value.
    pub(super) fn sound(&self, paths: &[&str]) -> bool {
        paths.iter().all(|path| !self.broken.contains(*path))
    }

    /// Whether somebody wrote the key.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.values.contains_key(path)
    }

    /// Reports a problem of several keys at the first of them that was set.
    pub(super) fn blame(&mut self, paths: &[&str], text: String) {
        let set = paths.iter().find_map(|path| self.values.get(*path));
        let place = set.map_or(Place::Default, |value| value.place.clone());
        self.problems.push(Problem { place, text });
    }
}

/// A default as TOML.
fn show(default: &str, shape: Shape) -> String {
    match shape {
        Shape::Bare => default.to_owned(),
        Shape::Text if default.is_empty() => String::new(),
        Shape::Text => format!("{default:?}"),
        Shape::Table => "{}".to_owned(),
        Shape::List if default.is_empty() => "[]".to_owned(),
        Shape::List => {
            let items = default.split(',').map(str::trim).filter(|item| !item.is_empty());
            let items: Vec<String> = items.map(|item| format!("{item:?}")).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// Declares a section: its struct, and `read`, which declares and reads each key with the field's own documentation.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $vis:vis struct $name:ident in $section:literal {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $kind:expr, $default:literal; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        $vis struct $name {
            $( $(#[doc = $doc])+ $vis $field: $type, )+
        }

        impl $name {
            pub(super) fn read(reader: &mut $crate::config::reader::Reader) -> Self {
                reader.section($section, concat!($($about),+));
                Self { $( $field: reader.key(stringify!($field), concat!($($doc),+), $kind, $default), )+ }
            }
        }
    };
    // A section that may be there any number of times; each table knows where it stands.
    (
        $(#[doc = $about:literal])+
        $vis:vis struct $name:ident in each $section:literal {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $kind:expr, $default:literal; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        $vis struct $name {
            /// Of the table's name; none if it is not from a file.
            $vis place: Option<$crate::config::Place>,
            $( $(#[doc = $doc])+ $vis $field: $type, )+
        }

        impl $name {
            pub(super) fn read(reader: &mut $crate::config::reader::Reader) -> Vec<Self> {
                reader.tables($section, concat!($($about),+), |reader| Self {
                    place: reader.table_place(),
                    $( $field: reader.key(stringify!($field), concat!($($doc),+), $kind, $default), )+
                })
            }
        }
    };
}
pub(super) use section;
