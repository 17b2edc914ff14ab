//! Pages as tensors: K and V of a few pages, and which of their rows a query may see.

use crate::fault::{candle, invalid};
use crate::region::{Plain, Region};
use crate::shape;
use crate::tile::{tensor, values};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use kvern_contract::{KvEncoding, PAGE_TOKENS, Result, encoding_of};

const TOKENS: usize = PAGE_TOKENS as usize;

/// A `PageEntry` whose fields were checked.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    offset: u64,
    first: u64,
    tokens: u32,
    /// Its encoding: pages of one product share it.
    pub encoding: u32,
    mask: u32,
    packed: bool,
}

/// Reads `count` entries from entry `from` on. *Errors* Invalid, Unsupported.
pub fn entries(table: &Region, from: u32, count: u32) -> Result<Vec<Page>> {
    let table = table.part(32 * u64::from(from), 32 * u64::from(count))?;
    let mut pages = Vec::with_capacity(count as usize);
    for i in 0..u64::from(count) {
        let words = table.read::<u32>(32 * i, 8)?;
        let [low, high, first, tokens, encoding, mask, packed, _] = words[..] else {
            return Err(invalid("a page entry is cut short"));
        };
        if tokens > PAGE_TOKENS {
            return Err(invalid(format!("a page of {tokens} tokens, at most {PAGE_TOKENS}")));
        }
        shape::plain(encoding)?;
        let offset = u64::from(low) | u64::from(high) << 32;
        let (first, packed) = (u64::from(first), packed != 0);
        pages.push(Page { offset, first, tokens, encoding, mask, packed });
    }
    Ok(pages)
}

/// Which positions a query sees, masks apart.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Nothing after itself.
    pub causal: bool,
    /// The last so many, itself included; 0: all.
    pub window: u32,
    /// So many from the start stay seen.
    pub keep: u32,
}

impl Sight {
    fn sees(&self, query: u64, page: &Page, token: usize) -> bool {
        let at = page.first + token as u64;
        let recent = self.window == 0 || at + u64::from(self.window) > query;
        page.packed || (!self.causal || at <= query) && (recent || at < u64::from(self.keep))
    }
}

/// Sizes of what pages hold.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// KV heads.
    pub heads: usize,
    /// Channels of K.
    pub key: usize,
    /// Channels of V.
    pub value: usize,
}

/// A few pages of one encoding. Rows that no query may see are zero, so that they cannot spoil a
/// product.
pub struct Pages {
    pages: Vec<Page>,
    /// Rows that may be seen, `[kv head][page]`.
    bits: Vec<u64>,
    /// f32 `[kv head * page][64][key]`.
    pub keys: Tensor,
    /// f32 `[kv head * page][64][value]`.
    pub values: Tensor,
    /// Whether every value is a finite number.
    pub finite: bool,
}

impl Pages {
    /// Copies pages in. *Errors* Invalid.
    pub fn gather(
        pages: &[Page],
        pool: &Region,
        masks: Option<&Region>,
        form: Form,
    ) -> Result<Self> {
        let bits = bits(pages, masks, form.heads)?;
        let encoding = pages.first().and_then(|page| encoding_of(page.encoding));
        let (keys, values) = match encoding {
            Some(KvEncoding::F16) => read::<f16>(pages, &bits, pool, form),
            Some(KvEncoding::Bf16) => read::<bf16>(pages, &bits, pool, form),
            _ => read::<f32>(pages, &bits, pool, form),
        }?;
        let finite = crate::tile::values(&values, |v| Ok(v.iter().all(|x| x.is_finite())))?;
        Ok(Pages { pages: pages.to_vec(), bits, keys, values, finite })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    /// What queries at `first` and the next `rows - 1` positions see, `[kv head][row][page][64]`;
    /// `None`: all.
    pub fn seen(&self, first: u64, rows: usize, sight: Sight) -> Option<Vec<u8>> {
        let mut seen = Vec::with_capacity(self.bits.len() * rows * TOKENS);
        for bits in self.bits.chunks_exact(self.count()) {
            for query in first..first + rows as u64 {
                for (page, bits) in self.pages.iter().zip(bits) {
                    let sees = |t| bits >> t & 1 == 1 && sight.sees(query, page, t);
                    seen.extend((0..TOKENS).map(|t| u8::from(sees(t))));
                }
            }
        }
        seen.contains(&0).then_some(seen)
    }

    /// The values with every row that is not seen, `[kv head][page][64]`, set to zero. *Errors*
    /// Internal.
    pub fn values_seen(&self, seen: &[u8]) -> Result<Tensor> {
        let (count, tokens, width) = self.values.dims3().map_err(candle)?;
        let mut all = values(&self.values, |v| Ok(v.to_vec()))?;
        let unseen = all.chunks_exact_mut(width).zip(seen).filter(|(_, seen)| **seen == 0);
        unseen.for_each(|(row, _)| row.fill(0.0));
        tensor(all, (count, tokens, width))
    }
}

fn bits(pages: &[Page], masks: Option<&Region>, heads: usize) -> Result<Vec<u64>> {
    let mut bits = Vec::with_capacity(heads * pages.len());
    for head in 0..heads as u64 {
        for page in pages {
            let mut mask =
                if page.tokens == PAGE_TOKENS { u64::MAX } else { (1 << page.tokens) - 1 };
            if page.mask != u32::MAX {
                let masks =
                    masks.ok_or_else(|| invalid("a page has a mask, but there are none"))?;
                let at = 8 * (u64::from(page.mask) * heads as u64 + head);
                mask &= masks.read::<u64>(at, 1)?.first().copied().unwrap_or(0);
            }
            bits.push(mask);
        }
    }
    Ok(bits)
}

fn read<T: WithDType + Plain>(
    pages: &[Page],
    bits: &[u64],
    pool: &Region,
    form: Form,
) -> Result<(Tensor, Tensor)> {
    let each = size_of::<T>();
    let half = |width: usize| (form.heads * TOKENS * width * each) as u64;
    let whole = half(form.key) + half(form.value);
    let side = |base: u64, width: usize| -> Result<Vec<T>> {
        let count = TOKENS * width;
        let mut all = Vec::<T>::with_capacity(form.heads * pages.len() * count);
        for (head, bits) in bits.chunks_exact(pages.len()).enumerate() {
            for (page, bits) in pages.iter().zip(bits) {
                let frame = pool.part(page.offset, whole)?;
                let start = all.len();
                frame.append(base + (head * count * each) as u64, count, &mut all)?;
                if *bits != u64::MAX {
                    let rows = all.get_mut(start..).unwrap_or(&mut []).chunks_exact_mut(width);
                    let unseen = rows.enumerate().filter(|(t, _)| bits >> t & 1 == 0);
                    unseen.for_each(|(_, row)| row.fill(T::zero()));
                }
            }
        }
        Ok(all)
    };
    let made = |all: Vec<T>, shape: (usize, usize, usize)| {
        Tensor::from_vec(all, shape, &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(DType::F32))
            .map_err(candle)
    };
    let keys = made(side(0, form.key)?, (form.heads * pages.len(), TOKENS, form.key))?;
    let rows = side(half(form.key), form.value)?;
    Ok((keys, made(rows, (form.heads * pages.len(), TOKENS, form.value))?))
}
