//! The root modules: what a library of each kind exports, and the type whose layout the host
//! compares.

use crate::device::{DeviceObject, expose_device};
use crate::guard::{Poison, one_line_panics};
use crate::kv::strategy::{KvObject, expose_kv};
use crate::offload::{OffloadObject, expose_offload};
use crate::wire::{AbiResult, send};
use abi_stable::StableAbi;
use abi_stable::library::{
    __call_root_module_loader, CheckTypeLayout, LibHeader, RootModule, RootModuleResult,
};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;
use kvern_contract::{DeviceBackend, KvStrategy, OffloadPolicy};

macro_rules! roots { ($($root:ident, $reference:ident, $fields:ident, $name:literal, $object:ty,
    $contract:ident, $expose:ident, $operation:literal,
    $make:ident, $load:ident, $header:ident;)*) => { $(
    /// What a library of this kind exports.
    #[repr(C)]
    #[derive(StableAbi)]
    #[sabi(kind(Prefix(prefix_ref = $reference, prefix_fields = $fields)))]
    pub struct $root {
        /// A new instance.
        #[sabi(last_prefix_field)]
        pub make: extern "C" fn() -> AbiResult<$object>,
    }

    impl RootModule for $reference {
        abi_stable::declare_root_module_statics! {$reference}
        const BASE_NAME: &'static str = $name;
        const NAME: &'static str = $name;
        const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
    }

    extern "C" fn $make<T: $contract + Default + 'static>() -> AbiResult<$object> {
        send(Poison::default().run($operation, || Ok($expose(Box::new(T::default())))))
    }

    extern "C" fn $load<T: $contract + Default + 'static>() -> RootModuleResult {
        __call_root_module_loader(|| {
            one_line_panics();
            $root { make: $make::<T> }.leak_into_prefix()
        })
    }

    /// The header of a library whose plugin is `T`.
    pub const fn $header<T: $contract + Default + 'static>() -> LibHeader {
        header_of::<$reference>($load::<T>)
    }
)* } }

roots! {
    KvRoot, KvRootRef, KvRootFields, "kvern-kv", KvObject,
        KvStrategy, expose_kv, "kv/new", make_kv, load_kv, kv_header;
    OffloadRoot, OffloadRootRef, OffloadRootFields, "kvern-offload", OffloadObject,
        OffloadPolicy, expose_offload, "offload/new", make_offload, load_offload, offload_header;
    DeviceRoot, DeviceRootRef, DeviceRootFields, "kvern-device", DeviceObject,
        DeviceBackend, expose_device, "device/new", make_device, load_device, device_header;
}

#[allow(unsafe_code)]
const fn header_of<M: RootModule>(load: extern "C" fn() -> RootModuleResult) -> LibHeader {
    // SAFETY: each caller in this file pairs a loader with the reference type of the root that it
    // returns.
    unsafe { LibHeader::from_constructor::<M>(load, CheckTypeLayout::Yes) }
}
