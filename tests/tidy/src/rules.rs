//! The rules, a subject each.

mod absences;
mod documents;
mod edges;
mod form;
mod gate;
mod plugins;
mod unsafety;
