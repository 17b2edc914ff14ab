//! What a plugin writes: one line. The macro exports two symbols, the stamp and the header.

pub use crate::root::{device_header, kv_header, offload_header};
pub use crate::stamp::Stamp;
/// The header that a library exports.
pub type Header = abi_stable::library::LibHeader;

#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($kind:ident, $header:ident, $plugin:ty) => {
        const _: () = {
            #[unsafe(export_name = "kvern_plugin_stamp")]
            static STAMP: $crate::export::Stamp =
                $crate::export::Stamp::new($crate::PluginKind::$kind, cfg!(panic = "unwind"));
            #[unsafe(export_name = "kvern_plugin_header")]
            static HEADER: $crate::export::Header = $crate::export::$header::<$plugin>();
        };
    };
}

/// Exports a type that is `KvStrategy` and `Default` as this library's plugin. Once a library.
#[macro_export]
macro_rules! export_kv_strategy {
    ($plugin:ty) => {
        $crate::__export!(Kv, kv_header, $plugin);
    };
}

/// Exports a type that is `OffloadPolicy` and `Default` as this library's plugin. Once a library.
#[macro_export]
macro_rules! export_offload_policy {
    ($plugin:ty) => {
        $crate::__export!(Offload, offload_header, $plugin);
    };
}

/// Exports a type that is `DeviceBackend` and `Default` as this library's plugin. Once a library.
#[macro_export]
macro_rules! export_device_backend {
    ($plugin:ty) => {
        $crate::__export!(Device, device_header, $plugin);
    };
}
