//! A limit on how deep a message may be nested, for a format that has none: each level takes some of the stack.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// How much deeper it may become.
pub(super) struct Depth {
    left: Cell<usize>,
    exceeded: Cell<bool>,
}

impl Depth {
    pub(super) fn new(most: usize) -> Self {
        Self { left: Cell::new(most), exceeded: Cell::new(false) }
    }

    /// Whether that was too deep.
    pub(super) fn is_exceeded(&self) -> bool {
        self.exceeded.get()
    }

    /// Limits what comes out of `inner`.
    pub(super) fn limit<T>(&self, inner: T) -> Limited<'_, T> {
        Limited { inner, depth: self }
    }

    /// Goes one level down, and up again.
    #[inline]
    fn within<T, E: Error>(&self, level: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let left = self.left.get();
        if left == 0 {
            self.exceeded.set(true);
            return Err(E::custom("it is nested too deep"));
        }
        self.left.set(left - 1);
        let result = level();
        self.left.set(left);
        result
    }
}

/// A part of a deserializer, or of what it fills, that goes no deeper than allowed.
pub(super) struct Limited<'a, T> {
    inner: T,
    depth: &'a Depth,
}

/// What has nothing inside goes through, and anything else is one level.
macro_rules! deserialize {
    (through: $($scalar:ident)*; level: $($level:ident($($name:ident: $type:ty),*))*) => {
        $(
            #[inline]
            fn $scalar<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.inner.$scalar(visitor)
            }
        )*
        $(
            #[inline]
            fn $level<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, D::Error> {
                let Self { inner, depth } = self;
                depth.within(|| inner.$level($($name,)* depth.limit(visitor)))
            }
        )*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Limited<'_, D> {
    type Error = D::Error;

    deserialize! {
        through: deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
            deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
            deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit;
        level: deserialize_any() deserialize_ignored_any() deserialize_identifier() deserialize_option() deserialize_seq()
            deserialize_map() deserialize_unit_struct(name: &'static str) deserialize_newtype_struct(name: &'static str)
            deserialize_tuple(len: usize) deserialize_tuple_struct(name: &'static str, len: usize)
            deserialize_struct(name: &'static str, fields: &'static [&'static str])
            deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// What a format that does not describe itself shows of that which is a level.
impl<'de, V: Visitor<'de>> Visitor<'de> for Limited<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    #[inline]
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, some: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(self.depth.limit(some))
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, field: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(self.depth.limit(field))
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(self.depth.limit(seq))
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(self.depth.limit(map))
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, variants: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(self.depth.limit(variants))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Limited<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(self.depth.limit(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Limited<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(self.depth.limit(seed))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Limited<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(self.depth.limit(seed))
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(self.depth.limit(seed))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Limited<'a, A> {
    type Error = A::Error;
    type Variant = Limited<'a, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let Self { inner, depth } = self;
        inner.variant_seed(seed).map(|(variant, content)| (variant, depth.limit(content)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Limited<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(self.depth.limit(seed))
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, self.depth.limit(visitor))
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, self.depth.limit(visitor))
    }
}
