//! From a file to a plugin: file, stamp, loader, header, layout, root module, instance,
//! description. Each step refuses in one line, and no code of the library runs before its stamp is
//! accepted.
#![allow(unsafe_code)]

use crate::device::ForeignDevice;
use crate::elf::Image;
use crate::kv::strategy::ForeignKv;
use crate::offload::ForeignOffload;
use crate::root::{DeviceRootRef, KvRootRef, OffloadRootRef};
use crate::stamp::Stamp;
use crate::trail::{self, Maker, Operation};
use crate::wire::{AbiResult, receive};
use crate::{Plugin, PluginKind};
use abi_stable::library::{AbiHeaderRef, LibHeader, RootModule};
use kvern_contract::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const STAMP: &str = "kvern_plugin_stamp";
const HEADER: &str = "kvern_plugin_header";

/// What this process loaded, and which file it was.
static LOADED: Mutex<BTreeMap<PathBuf, [i64; 5]>> = Mutex::new(BTreeMap::new());

/// Reads what a plugin was built for, from its file alone: nothing of it runs. *Errors* NotFound,
/// Io; Unsupported when it is no Kvern plugin. The stamp may be of another epoch: `open` judges it.
pub fn read_stamp(path: &Path) -> Result<Stamp> {
    stamp_of(&Image::open(path)?)
}

fn stamp_of(image: &Image) -> Result<Stamp> {
    let Some((address, bytes)) = image.symbol(STAMP)? else {
        return Err(image.refuse(&format!(
            "it has no symbol {STAMP}; a plugin exports one with kvern_abi's export macros"
        )));
    };
    let bytes = image.bytes_at(address, bytes.min(size_of::<Stamp>() as u64))?;
    Stamp::parse(&bytes).ok_or_else(|| image.refuse("its stamp is not a stamp"))
}

/// Loads a library and makes a new instance of its plugin. The library stays loaded for the life of
/// the process; each call makes an instance of its own, also of one library.
///
/// *Errors* NotFound, Io: the file. Unsupported: not a plugin, or the system's loader refused it.
/// Mismatch: built for another epoch, target, layout or panic strategy; the message says what to
/// do. Panicked: it panicked while it was made or described.
pub fn open(path: &Path) -> Result<Plugin> {
    open_one(path).map_err(|error| named(path, error))
}

/// Every refusal names the library, also one that the plugin wrote.
fn named(path: &Path, mut error: Error) -> Error {
    let name = path.display().to_string();
    if !error.message.contains(&name) {
        error.message = format!("{name}: {}", error.message);
    }
    error
}

fn open_one(path: &Path) -> Result<Plugin> {
    let image = Image::open(path)?;
    let kind = stamp_of(&image)?.check(path)?;
    if image.symbol(HEADER)?.is_none() {
        return Err(image.refuse(&format!("it has a stamp, but no symbol {HEADER}")));
    }
    let maker = trail::maker(kind, path);
    let loading = trail::enter(maker, const { Operation::of("abi/load") });
    let header = load(path, &image)?;
    let plugin = match kind {
        PluginKind::Kv => {
            let root = root::<KvRootRef>(path, header)?;
            let made = make(root.make(), maker, const { Operation::of("kv/new") })?;
            Plugin::Kv(Box::new(ForeignKv::new(made, maker)?))
        }
        PluginKind::Offload => {
            let root = root::<OffloadRootRef>(path, header)?;
            let made = make(root.make(), maker, const { Operation::of("offload/new") })?;
            Plugin::Offload(Box::new(ForeignOffload::new(made, maker)?))
        }
        PluginKind::Device => {
            let root = root::<DeviceRootRef>(path, header)?;
            let made = make(root.make(), maker, const { Operation::of("device/new") })?;
            Plugin::Device(Box::new(ForeignDevice::new(made, maker)?))
        }
    };
    drop(loading);
    trail::name(maker, &plugin);
    Ok(plugin)
}

/// Loads the library and answers its own header; the convenience loader of abi_stable would keep
/// one module for each Rust type, so that a second plugin of a kind were silently the first.
fn load(path: &Path, image: &Image) -> Result<&'static LibHeader> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // With a slash in it, so that the loader does not search for it elsewhere.
    let whole = path.canonicalize().map_err(|e| image.refuse(&e.to_string()))?;
    // The loader answers a path that it knows with what it has, whatever lies there by now.
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let identity = image.identity()?;
    if loaded.get(&whole).is_some_and(|before| *before != identity) {
        let line = format!(
            "{} was replaced since this process loaded it; start the process anew",
            path.display()
        );
        return Err(Error::new(ErrorKind::Mismatch, "abi/open", line));
    }
    // SAFETY: the library's constructors run. Its file is whole and its stamp says that it is a
    // plugin of this epoch and target; that a plugin's constructors are sound is its author's
    // promise, as all of its code is.
    let library = unsafe { Library::open(Some(&whole), RTLD_NOW | RTLD_LOCAL) };
    let library =
        library.map_err(|e| image.refuse(&format!("the loader says {}", one_line(&e))))?;
    loaded.insert(whole, identity);
    drop(loaded);
    // SAFETY: by the stamp's epoch the symbol is a `LibHeader`, which starts with abi_stable's own
    // header; a reference to that is what an `AbiHeaderRef` is. `upgrade` checks magic and version
    // before it looks further.
    let header = unsafe { library.get::<AbiHeaderRef>(HEADER.as_bytes()) }
        .map(|symbol| *symbol)
        .map_err(|e| image.refuse(&format!("the loader says {}", one_line(&e))))?;
    // Never unloaded: its tables and code are used for the life of the process.
    std::mem::forget(library);
    header.upgrade().map_err(|e| mismatch(path, "its abi_stable differs", &e))
}

/// The root module, once its layout, and with it that of every table and struct, is known to be
/// this host's.
fn root<M: RootModule>(path: &Path, header: &'static LibHeader) -> Result<M> {
    if header.layout().is_none() {
        return Err(mismatch(path, "its header carries no layout to check", &"none"));
    }
    header.ensure_layout::<M>().map_err(|e| mismatch(path, "its tables differ", &e))?;
    header.check_layout::<M>().map_err(|e| mismatch(path, "its root module failed", &e))
}

fn make<T>(make: extern "C" fn() -> AbiResult<T>, maker: Maker, operation: Operation) -> Result<T> {
    crate::count::tick();
    let _step = trail::enter(maker, operation);
    receive(make()).map_err(|error| maker.sign(error))
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

fn mismatch(path: &Path, why: &str, detail: &dyn std::fmt::Display) -> Error {
    let (name, version) = (path.display(), env!("CARGO_PKG_VERSION"));
    let message =
        format!("{name} does not fit this host: {why}; build it against kvern-abi {version}");
    let mut error = Error::new(ErrorKind::Mismatch, "abi/open", message);
    error.context.push(("detail".into(), one_line(detail)));
    error
}
