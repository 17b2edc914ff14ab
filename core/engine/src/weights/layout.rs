//! Where a unit's matrices lie in memory: parts of files are read as they are, in few and long
//! reads, and the device computes on what was read, in place.
//!
//! An extent is a part of a file with one matrix or with neighbours. It starts and ends where the
//! file's alignment has it, at a page of memory, so that offset and address agree as a direct read
//! wants them. A matrix whose address then does not suit its values is copied behind its extent.

use super::files::Stored;
use super::up;
use kvern_contract::{FileId, WeightEncoding};

/// Extents start at multiples of this in memory.
pub(crate) const PAGE: u64 = 4096;
/// Where nothing else says where a matrix starts, it starts at a multiple of this.
const ALIGN: u64 = 64;
/// Most bytes of an extent of several matrices: what staging memory is given out in.
const EXTENT_MOST: u64 = 64 << 20;
/// Most bytes between two matrices that are read along rather than skipped.
const GAP_MOST: u64 = 64 << 10;
/// And at most this share of the matrix that follows.
const GAP_SHARE: u64 = 256;

/// What a layout depends on of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// What offset, address and length of a read should be multiples of.
    pub align: u64,
    /// Its length.
    pub bytes: u64,
}

/// Bytes that go elsewhere in an extent's memory once they are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Copied {
    pub from: u64,
    pub to: u64,
    pub bytes: u64,
}

/// A part of a file and its memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub file: FileId,
    pub start: u64,
    /// Bytes that are read, to the start of the memory.
    pub bytes: u64,
    /// Bytes of memory, a multiple of [`PAGE`].
    pub memory: u64,
    pub copies: Vec<Copied>,
}

/// Where a matrix is: an extent, and a place in its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub extent: usize,
    pub at: u64,
}

/// A unit's extents, and its matrices in them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Layout {
    pub extents: Vec<Extent>,
    /// In the order of the unit's matrices.
    pub places: Vec<Place>,
    /// Bytes of the matrices themselves.
    pub matrix_bytes: u64,
}

impl Layout {
    /// Lays out the matrices of a unit.
    pub(crate) fn of(matrices: &[Stored], shape: impl Fn(FileId) -> Shape) -> Layout {
        let mut order: Vec<usize> = (0..matrices.len()).collect();
        order.sort_by_key(|m| (matrices[*m].file.0, matrices[*m].offset));
        let mut layout = Layout::default();
        let mut parts: Vec<Part> = Vec::new();
        layout.places.resize(matrices.len(), Place { extent: 0, at: 0 });
        for index in order {
            let m = &matrices[index];
            let shape = shape(m.file);
            match parts.last_mut().filter(|part| part.takes(m)) {
                Some(part) => part.end = part.end.max(m.offset + m.bytes),
                None => parts.push(Part::of(m, shape)),
            }
            let start = parts.last().map_or(0, |part| part.start);
            layout.places[index] = Place { extent: parts.len() - 1, at: m.offset - start };
            layout.matrix_bytes += m.bytes;
        }
        layout.extents = parts.iter().map(Part::extent).collect();
        for (m, place) in matrices.iter().zip(&mut layout.places) {
            let extent = &mut layout.extents[place.extent];
            if place.at % value_bytes(m.encoding) != 0 {
                let last = extent.copies.last().map_or(extent.bytes, |c| c.to + c.bytes);
                let (from, to) = (place.at, up(last, ALIGN));
                extent.copies.push(Copied { from, to, bytes: m.bytes });
                extent.memory = up(to + m.bytes, PAGE);
                place.at = to;
            }
        }
        layout
    }

    /// Bytes of memory of all extents.
    pub(crate) fn memory(&self) -> u64 {
        self.extents.iter().map(|e| e.memory).sum()
    }

    /// Bytes that are read.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.extents.iter().map(|e| e.bytes).sum()
    }

    /// Matrices that are copied after they are read, and their bytes.
    pub(crate) fn copied(&self) -> (u64, u64) {
        let copies = self.extents.iter().flat_map(|e| &e.copies);
        copies.fold((0, 0), |(n, bytes), copy| (n + 1, bytes + copy.bytes))
    }
}

/// An extent that may still grow.
struct Part {
    file: FileId,
    shape: Shape,
    start: u64,
    /// Where its last matrix ends, not rounded.
    end: u64,
}

impl Part {
    fn of(m: &Stored, shape: Shape) -> Part {
        let shape = Shape { align: shape.align.max(1), ..shape };
        let start = m.offset / shape.align * shape.align;
        Part { file: m.file, shape, start, end: m.offset + m.bytes }
    }

    /// Whether a matrix that starts no earlier than the last one belongs to it.
    fn takes(&self, m: &Stored) -> bool {
        let gap = m.offset.saturating_sub(self.end);
        let near = gap <= 2 * self.shape.align || gap <= GAP_MOST.min(m.bytes / GAP_SHARE);
        // Where the file does not say where a matrix has to be, it is better off aligned.
        let aligned = self.shape.align > 1 || (m.offset - self.start).is_multiple_of(ALIGN);
        let end = self.end.max(m.offset + m.bytes);
        self.file == m.file && near && aligned && end - self.start <= EXTENT_MOST
    }

    fn extent(&self) -> Extent {
        // A file that ends inside its last matrix is an error of the read, not of the layout.
        let end = up(self.end, self.shape.align).min(self.shape.bytes).max(self.end);
        let bytes = end - self.start;
        let memory = up(bytes, PAGE);
        Extent { file: self.file, start: self.start, bytes, memory, copies: Vec::new() }
    }
}

/// Bytes of one value of a weight as stored.
fn value_bytes(encoding: WeightEncoding) -> u64 {
    match encoding {
        WeightEncoding::F32 => 4,
        WeightEncoding::Bf16 | WeightEncoding::F16 => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_storage::double::Random;

    fn matrix(file: u32, offset: u64, bytes: u64, encoding: WeightEncoding) -> Stored {
        Stored { file: FileId(file), offset, bytes, encoding, outputs: 1, inputs: 1 }
    }

    /// Matrices in files, with gaps of every size between them, in any order.
    fn matrices(random: &mut Random) -> Vec<Stored> {
        let mut list = Vec::new();
        for file in 1..=1 + random.below(3) as u32 {
            let mut at = random.below(3000);
            for _ in 0..random.below(5) {
                let encoding = match random.below(3) {
                    0 => WeightEncoding::F32,
                    1 => WeightEncoding::Bf16,
                    _ => WeightEncoding::F16,
                };
                let most = 1 << random.below(16);
                let bytes = 4 * (1 + random.below(most));
                list.push(matrix(file, at, bytes, encoding));
                let most = random.below(2) << random.below(18);
                at += bytes + random.below(most);
            }
        }
        for index in (1..list.len()).rev() {
            list.swap(index, random.below(index as u64 + 1) as usize);
        }
        list
    }

    fn byte(file: FileId, offset: u64) -> u8 {
        (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ file.0 as u8
    }

    #[test]
    fn every_matrix_is_where_the_layout_says_once_its_extents_are_read_and_copied() {
        let mut random = Random::new(5);
        let (mut several, mut copied) = (0, 0);
        for round in 0..500 {
            let list = matrices(&mut random);
            let align = [1, 512, 4096][random.below(3) as usize];
            let end = list.iter().map(|m| m.offset + m.bytes).max().unwrap_or(0);
            let shape = Shape { align, bytes: end };
            let layout = Layout::of(&list, |_| shape);
            let memory: Vec<Vec<u8>> = layout.extents.iter().map(|e| read(e, shape)).collect();
            assert_eq!(layout.places.len(), list.len());
            for (m, place) in list.iter().zip(&layout.places) {
                let at = place.at as usize;
                let got = &memory[place.extent][at..at + m.bytes as usize];
                let right = (0..m.bytes).all(|i| got[i as usize] == byte(m.file, m.offset + i));
                assert!(right, "round {round}: {m:?} at {place:?}");
                assert_eq!(place.at % value_bytes(m.encoding), 0);
                if align == 1 {
                    assert_eq!(place.at % ALIGN, 0);
                }
            }
            several += usize::from(layout.extents.len() < list.len());
            copied += layout.copied().0;
        }
        assert!(several > 100 && copied > 100, "{several} coalesced, {copied} copied");
    }

    /// What an extent's memory holds in the end.
    fn read(extent: &Extent, shape: Shape) -> Vec<u8> {
        assert_eq!((extent.start % shape.align, extent.memory % PAGE), (0, 0));
        let end = extent.start + extent.bytes;
        assert!(end.is_multiple_of(shape.align) || end == shape.bytes, "{extent:?}, {shape:?}");
        let mut memory: Vec<u8> =
            (extent.start..end).map(|offset| byte(extent.file, offset)).collect();
        memory.resize(extent.memory as usize, 0);
        for copy in &extent.copies {
            assert!(copy.to >= extent.bytes && copy.to + copy.bytes <= extent.memory);
            let from = copy.from as usize;
            memory.copy_within(from..from + copy.bytes as usize, copy.to as usize);
        }
        memory
    }

    #[test]
    fn neighbours_are_one_read_and_what_lies_far_apart_is_two() {
        let shape = |align| move |_: FileId| Shape { align, bytes: 1 << 40 };
        let mib = 1 << 20;
        let list = [
            matrix(1, 40 + 8 * mib, mib, WeightEncoding::Bf16),
            matrix(1, 40, mib, WeightEncoding::Bf16),
            matrix(1, 40 + mib + 2048, mib, WeightEncoding::Bf16),
        ];
        let direct = Layout::of(&list, shape(4096));
        let starts: Vec<_> = direct.extents.iter().map(|e| (e.start, e.bytes)).collect();
        assert_eq!(starts, [(0, 2 * mib + 4096), (8 * mib, mib + 4096)]);
        assert_eq!(direct.places[2], Place { extent: 0, at: 40 + mib + 2048 });
        assert_eq!(direct.copied(), (0, 0));
        let buffered = Layout::of(&list, shape(1));
        assert_eq!(buffered.extents.len(), 2);
        assert_eq!(buffered.read_bytes(), 3 * mib + 2048);
        let far = [list[1], matrix(1, 40 + mib + 9000, mib, WeightEncoding::Bf16)];
        assert_eq!(Layout::of(&far, shape(4096)).extents.len(), 2, "9000 bytes are skipped");
        let large = [matrix(1, 0, 40 * mib, WeightEncoding::Bf16)];
        let large = [large[0], matrix(1, 40 * mib, 40 * mib, WeightEncoding::Bf16)];
        assert_eq!(Layout::of(&large, shape(4096)).extents.len(), 2, "memory is given in parts");
    }

    #[test]
    fn a_matrix_at_an_odd_offset_is_copied_to_where_its_values_may_be() {
        let list = [
            matrix(1, 4097, 256, WeightEncoding::Bf16),
            matrix(1, 4353, 100, WeightEncoding::None),
            matrix(1, 4454, 100, WeightEncoding::F32),
        ];
        let layout = Layout::of(&list, |_| Shape { align: 512, bytes: 4554 });
        assert_eq!(layout.copied(), (2, 356));
        assert_eq!(layout.extents[0].bytes, 458, "to the end of the file");
        assert_eq!(layout.extents[0].copies[0], Copied { from: 1, to: 512, bytes: 256 });
        assert_eq!(layout.places[1].at, 257);
        assert_eq!(layout.places[2].at, 768);
    }
}
