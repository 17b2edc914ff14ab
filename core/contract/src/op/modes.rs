//! Modes: the small choices that ops have among their parameters, one word each.

use super::Words;

macro_rules! modes { ($($(#[$d:meta])* $name:ident {
    $($(#[$w:meta])* $word:ident = $code:literal),* $(,)?
})*) => { $(
    $(#[$d])*
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(u32)]
    pub enum $name { $($(#[$w])* $word = $code),* }
    impl Words for $name {
        fn put(&self, out: &mut Vec<u32>) { out.push(*self as u32) }
        fn take(w: &mut &[u32]) -> Option<Self> {
            match u32::take(w)? { $($code => Some($name::$word),)* _ => None }
        }
    }
)* } }
modes! {
    /// What a norm divides by, and whether its weight is w or 1 + w.
    NormKind {
        /// x / sqrt(mean of squares + eps), times w.
        Rms = 1,
        /// As `Rms`, times 1 + w.
        RmsPlusOne = 2,
        /// (x - mean) / sqrt(variance + eps), times w.
        Layer = 3,
        /// x / sqrt(sum of squares + eps), times w.
        L2 = 4,
    }
    /// What follows the products. Gated: act(first) * second, into the first output.
    Epilogue {
        /// Nothing.
        None = 0,
        /// silu of each.
        Silu = 1,
        /// The exact gelu, by erf.
        Gelu = 2,
        /// gelu by the tanh approximation.
        GeluTanh = 3,
        /// silu(first) * second, into the first output.
        SiluGated = 4,
        /// gelu by tanh of the first, times the second, into the first output.
        GeluTanhGated = 5,
        /// gpt-oss's, of one weight, even rows gate and odd rows up: g = min(gate, limit), u =
        /// clamp(up, -limit, limit), then (u + 1) g sigmoid(alpha g).
        Clamped = 6,
        /// Adds to what the output holds, bias and all.
        Add = 7,
    }
    /// How router scores become weights. A router's `bias` takes part in the choice, not in the
    /// weights.
    RouteKind {
        /// softmax over all experts, then the largest.
        SoftmaxThenTop = 1,
        /// The largest, then softmax over them.
        TopThenSoftmax = 2,
        /// sigmoid of each, then the largest.
        SigmoidThenTop = 3,
    }
    /// What an elementwise op computes from a, b and a scalar.
    MapKind {
        /// a + scalar b.
        Add = 1,
        /// a b.
        Mul = 2,
        /// scalar a.
        Scale = 3,
        /// a sigmoid(b).
        SigmoidMul = 4,
        /// a silu(b).
        SiluMul = 5,
        /// scalar tanh(a / scalar).
        Softcap = 6,
        /// a.
        Copy = 7,
    }
    /// Which way rows move.
    RowsKind {
        /// Reads rows by index: out row i is x row `indices[i]`.
        Gather = 1,
        /// Writes rows by index: out row `indices[i]` is x row i.
        Scatter = 2,
        /// As `Scatter`, and adds.
        ScatterAdd = 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that a mode accepts, each of which must be the number of what it gives.
    fn numbers<T: Words>() -> Vec<u32> {
        let survives = |word: &u32| {
            let mut out = Vec::new();
            T::take(&mut [*word].as_slice()).inspect(|mode| mode.put(&mut out)).is_some()
                && out == [*word]
        };
        (0..300).filter(survives).collect()
    }

    #[test]
    fn every_mode_survives_its_number_and_no_other_number_is_taken() {
        assert_eq!(numbers::<NormKind>(), [1, 2, 3, 4]);
        assert_eq!(numbers::<Epilogue>(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers::<RouteKind>(), [1, 2, 3]);
        assert_eq!(numbers::<MapKind>(), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers::<RowsKind>(), [1, 2, 3]);
    }
}
