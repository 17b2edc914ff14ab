//! A panic never crosses. Every entry point runs inside `Poison::run` (the plugin's side: what
//! panicked is poisoned and answers Panicked from then on) or `host_call` (the host's side:
//! Internal, and nobody is poisoned).
//!
//! Poisoning follows the catch, never the kind of an error: a plugin may pass on a host's error as
//! its own.
#![allow(unsafe_code)]

use crate::trail::Operation;
use crate::wire::{AbiResult, send};
use abi_stable::StableAbi;
use kvern_contract::{Error, ErrorKind, HostRef, Result};
use std::any::Any;
use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

/// An object of the side that made it; the other side only carries it.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy)]
pub struct Handle(*mut u8);

/// The first panic of an instance, shared by everything that the instance opened: after it their
/// common state may be half changed.
#[derive(Default)]
pub struct Poison(OnceLock<(String, &'static str)>);

impl Poison {
    /// Runs a plugin's code. *Errors* the code's own; Panicked when it panics, or did before.
    #[inline]
    pub fn run<R>(&self, operation: &'static str, body: impl FnOnce() -> Result<R>) -> Result<R> {
        if let Some(first) = self.0.get() {
            return Err(Self::spent(operation, first));
        }
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|p| Err(self.caught(operation, p)))
    }

    #[cold]
    fn spent(operation: &str, (text, during): &(String, &str)) -> Error {
        let message = format!("the plugin panicked before, in {during}: {text}; open it anew");
        Error::new(ErrorKind::Panicked, operation, message)
    }

    #[cold]
    fn caught(&self, operation: &'static str, payload: Box<dyn Any + Send>) -> Error {
        let text = panic_text(payload);
        let mut error =
            Error::new(ErrorKind::Panicked, operation, format!("the plugin panicked: {text}"));
        if let Some(place) = PLACE.take() {
            error.context.push(("at".into(), place));
        }
        let _ = self.0.set((text, operation));
        error
    }
}

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Gives this image (a plugin has its own copy of the standard library) a panic hook that writes
/// one line to stderr and remembers the place for the error. The host's own hook is another one and
/// stays as it is.
pub fn one_line_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line()));
        let text = text_of(info.payload());
        let shown = place.as_deref().unwrap_or("an unknown place");
        let _ = writeln!(std::io::stderr(), "kvern: a plugin panicked at {shown}: {text}");
        PLACE.set(place);
    }));
}

/// What a payload says, on one line of at most 400 characters.
fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "without a message",
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(400).collect()
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let text = text_of(&*payload);
    if !payload.is::<String>() && !payload.is::<&str>() {
        std::mem::forget(payload); // its drop is foreign code and may panic in turn
    }
    text
}

/// What a handle points to on the plugin's side.
pub struct Instance<S: ?Sized> {
    poison: Arc<Poison>,
    inner: Box<S>,
}

/// Puts an object behind a handle. `retire::<S>` takes it back.
pub fn expose<S: ?Sized>(inner: Box<S>, poison: Arc<Poison>) -> Handle {
    Handle(Box::into_raw(Box::new(Instance { poison, inner })).cast())
}

/// Runs a call on the object behind a handle.
///
/// # Safety
/// `this` came from `expose::<S>` in this image, was not retired, and no other call on it is under
/// way.
#[inline]
pub unsafe fn enter<S: ?Sized, R>(
    this: Handle,
    operation: Operation,
    body: impl FnOnce(&mut S) -> Result<R>,
) -> AbiResult<R> {
    // SAFETY: by the caller's promise the pointer is a live `Instance<S>`, and ours alone.
    let instance = unsafe { &mut *this.0.cast::<Instance<S>>() };
    send(instance.poison.run(operation.name, || body(&mut instance.inner)))
}

/// The same for an object that several threads may call at once.
///
/// # Safety
/// `this` came from `expose::<S>` in this image and was not retired.
#[inline]
pub unsafe fn enter_shared<S: ?Sized + Sync, R>(
    this: Handle,
    operation: Operation,
    body: impl FnOnce(&S) -> Result<R>,
) -> AbiResult<R> {
    // SAFETY: by the caller's promise the pointer is a live `Instance<S>`; only shared references
    // to it exist.
    let instance = unsafe { &*this.0.cast::<Instance<S>>() };
    send(instance.poison.run(operation.name, || body(&instance.inner)))
}

/// Drops the object behind a handle; a panic of its drop ends there.
///
/// # Safety
/// As `enter`, and the handle is not used again.
pub unsafe extern "C" fn retire<S: ?Sized>(this: Handle) {
    // SAFETY: by the caller's promise the pointer came from `Box::into_raw` of this type and is
    // given back once.
    let instance = unsafe { Box::from_raw(this.0.cast::<Instance<S>>()) };
    end(|| drop(instance));
}

/// Puts the host behind a handle. `retire_host` takes it back.
pub fn expose_host(host: HostRef) -> Handle {
    Handle(Box::into_raw(Box::new(host)).cast())
}

/// Runs a plugin's call on the host. A panic of the host is Internal: the plugin under whose frame
/// it happened is not at fault.
///
/// # Safety
/// `this` came from `expose_host` in this image and was not retired.
#[inline]
pub unsafe fn host_call<R>(
    this: Handle,
    operation: Operation,
    body: impl FnOnce(&HostRef) -> Result<R>,
) -> AbiResult<R> {
    crate::count::tick();
    let _step = crate::trail::back(operation);
    // SAFETY: by the caller's promise the pointer is a live `HostRef`; it is only ever shared.
    let host = unsafe { &*this.0.cast::<HostRef>() };
    let caught = |payload| {
        let text = panic_text(payload);
        Err(Error::new(ErrorKind::Internal, operation.name, format!("the host panicked: {text}")))
    };
    send(catch_unwind(AssertUnwindSafe(|| body(host))).unwrap_or_else(caught))
}

/// Lets go of the host.
///
/// # Safety
/// As `host_call`, and the handle is not used again.
pub unsafe extern "C" fn retire_host(this: Handle) {
    // SAFETY: by the caller's promise the pointer came from `Box::into_raw` of this type and is
    // given back once.
    let host = unsafe { Box::from_raw(this.0.cast::<HostRef>()) };
    end(|| drop(host));
}

/// Runs a last act; a panic of it, and of its payload's drop, ends here.
fn end(act: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(act)) {
        panic_text(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_poisons_and_its_message_stays() {
        let poison = Poison::default();
        let first = poison.run::<()>("kv/load", || panic!("two\nlines {}", 1)).unwrap_err();
        assert_eq!(first.kind, ErrorKind::Panicked);
        assert_eq!(first.message, "the plugin panicked: two lines 1");
        let later = poison.run("kv/store", || Ok(())).unwrap_err();
        assert_eq!((later.kind, later.operation.as_str()), (ErrorKind::Panicked, "kv/store"));
        assert!(later.message.contains("kv/load: two lines 1"), "{}", later.message);
    }

    #[test]
    fn an_error_of_kind_panicked_does_not_poison() {
        let poison = Poison::default();
        let told = Error::new(ErrorKind::Panicked, "kv/load", "another plugin panicked");
        assert_eq!(poison.run::<()>("kv/load", || Err(told.clone())), Err(told));
        assert_eq!(poison.run("kv/load", || Ok(7)), Ok(7));
    }

    #[test]
    fn a_payload_whose_drop_panics_is_not_dropped() {
        struct Trap;
        impl Drop for Trap {
            fn drop(&mut self) {
                panic!("a second panic");
            }
        }
        let poison = Poison::default();
        let e = poison.run::<()>("kv/load", || std::panic::panic_any(Trap)).unwrap_err();
        assert_eq!(e.message, "the plugin panicked: without a message");
        end(|| std::panic::panic_any(Trap));
    }
}
