//! One table of slots for each contract, made from one list: the slot's types, and what the maker's
//! side does when it is called. The other side holds `Foreign`, which implements the contract's
//! trait over the slots.
#![allow(unsafe_code)]

use crate::guard::Handle;
use crate::trail::{self, Maker, Operation};
use abi_stable::StableAbi;

/// An object and its table, on their way to the other side.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Object<T> {
    pub handle: Handle,
    pub table: T,
}

/// What every table has: its slots' names, and its last call.
pub trait Table: Copy {
    /// The operation of each slot, under the slot's name.
    type Operations: 'static;
    /// All of them.
    const OPERATIONS: &'static Self::Operations;
    /// The operation that drops an object.
    const DROP: Operation;
    /// The slot that does.
    fn retire(&self) -> unsafe extern "C" fn(Handle);
}

/// The operations of a table's slots.
#[inline]
pub fn operations<T: Table>(_: &T) -> &'static T::Operations {
    T::OPERATIONS
}

/// An object of the other side.
pub struct Foreign<T: Table> {
    pub(crate) handle: Handle,
    pub(crate) table: T,
    /// Whose code its slots are.
    pub(crate) maker: Maker,
}

impl<T: Table> Foreign<T> {
    /// Takes an object over: it is dropped with this.
    pub fn new(object: Object<T>, maker: Maker) -> Self {
        Foreign { handle: object.handle, table: object.table, maker }
    }
}

impl<T: Table> Drop for Foreign<T> {
    fn drop(&mut self) {
        let _step = trail::enter(self.maker, T::DROP);
        // SAFETY: handle and table came together from the side that made them, and this is the last
        // use.
        unsafe { self.table.retire()(self.handle) }
    }
}

// SAFETY: a table is constant data and code that is never unloaded, and the object behind the
// handle was made from a type that is `Send` (every contract's trait demands it), so it may be
// called from one thread after another.
unsafe impl<T: Table> Send for Foreign<T> {}

/// Calls a slot of the other side, counts the crossing and leaves a trail; `within` is a time that
/// the call was given. `kvern_contract::Result` comes back.
macro_rules! cross {
    ($foreign:expr, $slot:ident $(, $argument:expr)*) => {
        crate::border::cross!(@ $foreign, enter(), $slot $(, $argument)*)
    };
    ($foreign:expr, $slot:ident within $limit:expr $(, $argument:expr)*) => {
        crate::border::cross!(@ $foreign, enter_within($limit), $slot $(, $argument)*)
    };
    (@ $foreign:expr, $enter:ident($($limit:expr)?), $slot:ident $(, $argument:expr)*) => {{
        let foreign = $foreign;
        crate::count::tick();
        let operation = crate::border::operations(&foreign.table).$slot;
        let _step = crate::trail::$enter(foreign.maker, operation $(, $limit)?);
        let slot = foreign.table.$slot();
        // SAFETY: handle and table came together from the side that made them; the contract's
        // receiver (`&mut self`, or a trait that is `Sync`) rules out calls that overlap where the
        // maker does not expect them; views in the arguments outlive the call because they borrow
        // from this frame.
        let answer = unsafe { slot(foreign.handle $(, $argument)*) };
        crate::wire::receive(answer).map_err(|error| foreign.maker.sign(error))
    }};
}
pub(crate) use cross;

/// Declares a table: its type, the entry points that fill it, and the constant that names it.
///
/// New slots are optional: they come after `retire`, behind a capability, and change no epoch.
macro_rules! border {
    ($(#[$doc:meta])* $table:ident, $reference:ident, $fields:ident, $operations:ident,
     $receiver:ty, $enter:path, $retire:path, $drop:literal;
     $($operation:literal $slot:ident($($argument:ident: $type:ty),*) -> $answer:ty
        = |$object:ident| $body:expr;)*) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(abi_stable::StableAbi)]
        #[sabi(kind(Prefix(prefix_ref = $reference, prefix_fields = $fields)))]
        pub struct $table {
            $(pub $slot: unsafe extern "C" fn(Handle, $($type),*) -> AbiResult<$answer>,)*
            #[sabi(last_prefix_field)]
            pub retire: unsafe extern "C" fn(Handle),
        }
        impl $table {
            $(unsafe extern "C" fn $slot(
                this: Handle,
                $($argument: $type),*
            ) -> AbiResult<$answer> {
                // SAFETY: the other side passes a handle that came with this very table, not yet
                // retired, and calls as the contract's trait allows.
                unsafe {
                    $enter(
                        this,
                        const { crate::trail::Operation::of($operation) },
                        |$object: $receiver| $body,
                    )
                }
            })*
            const FILLED: &abi_stable::prefix_type::WithMetadata<Self> =
                &abi_stable::prefix_type::WithMetadata::new($table {
                    $($slot: $table::$slot,)*
                    retire: $retire,
                });
            /// The table that goes with every object of this image.
            pub const REF: $reference = $reference(Self::FILLED.static_as_prefix());
        }
        /// The operations of the slots.
        pub struct $operations {
            $(pub $slot: crate::trail::Operation,)*
        }
        impl crate::border::Table for $reference {
            type Operations = $operations;
            const OPERATIONS: &'static $operations =
                &$operations { $($slot: crate::trail::Operation::of($operation),)* };
            const DROP: crate::trail::Operation = crate::trail::Operation::of($drop);
            fn retire(&self) -> unsafe extern "C" fn(Handle) {
                $reference::retire(self)
            }
        }
    };
}
pub(crate) use border;
