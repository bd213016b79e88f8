package state_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/atomicbitops"
	"gvisor.dev/gvisor/pkg/state"
)

// box is what the state package saves: it has a struct whose fields are saved one by one. All boxes have
// one name, so that what was saved as one can be loaded as another.
type box[T any] struct{ in T }

func (*box[T]) StateTypeName() string { return "torpor.box" }

func (*box[T]) StateFields() []string {
	typ := reflect.TypeFor[T]()
	names := make([]string, typ.NumField())
	for i := range names {
		names[i] = typ.Field(i).Name
	}
	return names
}

func (b *box[T]) StateSave(sink state.Sink) {
	fields := reflect.ValueOf(&b.in).Elem()
	for i := range fields.NumField() {
		sink.Save(i, fields.Field(i).Addr().Interface())
	}
}

func (b *box[T]) StateLoad(_ context.Context, source state.Source) {
	fields := reflect.ValueOf(&b.in).Elem()
	for i := range fields.NumField() {
		source.Load(i, fields.Field(i).Addr().Interface())
	}
}

type octet byte

// Uint32 looks like the atomic one, but has its own word about what is saved of it.
type Uint32 struct{ kept, dropped uint16 }

func (*Uint32) StateTypeName() string                            { return "torpor.Uint32" }
func (*Uint32) StateFields() []string                            { return []string{"kept"} }
func (u *Uint32) StateSave(sink state.Sink)                      { sink.Save(0, &u.kept) }
func (u *Uint32) StateLoad(_ context.Context, from state.Source) { from.Load(0, &u.kept) }

// arrays has one of all that is saved in another way than before, and of what is like it. Numbers are 128
// and more where it matters: those take two bytes as objects of their own.
type arrays struct {
	Bytes   [5]byte
	Zeros   [4]byte
	Nothing [0]byte
	Octets  [3]octet
	Atomics [3]atomicbitops.Uint32
	Unset   [2]atomicbitops.Uint32
	Nested  [2][3]byte
	Deep    [2][2]atomicbitops.Uint32
	Large   [300]byte

	Slice       []byte
	Spare       []byte // there is more behind its end
	Nil         []byte
	Empty       []byte
	EmptySpare  []byte
	AtomicSlice []atomicbitops.Uint32
	Slices      [][]byte
	OfArrays    [][3]byte

	Keys      map[[16]byte]string
	Values    map[string][4]byte
	Boxed     any // [4]byte
	ZeroBoxed any // [4]byte
	Pointed   any // *[4]byte

	Text  string
	Bools [2]bool
	Ints  [2]int8
	Wide  [2]uint32
	Flags [2]atomicbitops.Bool
	Texts [2]string
	Own   [2]Uint32
}

func newArrays() *box[arrays] {
	b := &box[arrays]{arrays{
		Bytes:       [5]byte{200, 201, 0, 203, 204},
		Octets:      [3]octet{130, 131, 132},
		Atomics:     [3]atomicbitops.Uint32(atomics(0xfedcba98, 0, 7)),
		Nested:      [2][3]byte{{140, 141, 142}, {143, 144, 145}},
		Slice:       []byte{150, 151},
		Spare:       append(make([]byte, 0, 9), 160, 161, 162, 163)[:3],
		Empty:       []byte{},
		EmptySpare:  make([]byte, 0, 4),
		AtomicSlice: atomics(1<<32-1, 0, 1<<24),
		Slices:      [][]byte{{170}, nil, {}, {171, 172}},
		OfArrays:    [][3]byte{{180, 181, 182}, {}, {183, 184, 185}},
		Keys:        map[[16]byte]string{{190, 191}: "first", {15: 255}: "second", {}: "zero"},
		Values:      map[string][4]byte{"set": {210, 211, 212, 213}, "zero": {}},
		Boxed:       [4]byte{220, 221, 222, 223},
		ZeroBoxed:   [4]byte{},
		Pointed:     &[4]byte{224, 225, 226, 227},
		Text:        "text \xff\x00",
		Bools:       [2]bool{true, false},
		Ints:        [2]int8{-128, 127},
		Wide:        [2]uint32{1 << 31, 5},
		Flags:       [2]atomicbitops.Bool{1: atomicbitops.FromBool(true)},
		Texts:       [2]string{1: "second"},
		Own:         [2]Uint32{{kept: 1}, {kept: 1 << 15}},
	}}
	for i := range b.in.Deep {
		copy(b.in.Deep[i][:], atomics(uint32(i+1)<<8, 1<<31))
	}
	for i := range b.in.Large {
		b.in.Large[i] = byte(i)
	}
	return b
}

func atomics(values ...uint32) []atomicbitops.Uint32 {
	made := make([]atomicbitops.Uint32, len(values))
	for i, value := range values {
		made[i] = atomicbitops.FromUint32(value)
	}
	return made
}

// shared has what is in two places at once: pointers before and after what they point into, as objects
// are found in that order.
type shared struct {
	BytesAt  *byte
	SliceAt  *byte
	AtomicAt *atomicbitops.Uint32
	NestedAt *byte
	Prefix   []byte
	Head     []byte

	Bytes       [5]byte
	Slice       []byte
	AtomicSlice []atomicbitops.Uint32
	Nested      *[2][3]byte

	Whole         []byte
	Row           []byte
	Again         *[2][3]byte
	SliceAtLast   *byte
	AtomicAtLast  *atomicbitops.Uint32
	AtomicsPrefix []atomicbitops.Uint32
}

func newShared() *box[shared] {
	b := &box[shared]{shared{
		Bytes:       [5]byte{200, 201, 202, 203, 204},
		Slice:       append(make([]byte, 0, 8), 150, 151, 152, 153),
		AtomicSlice: atomics(1<<31, 2, 3),
		Nested:      &[2][3]byte{{140, 141, 142}, {143, 144, 145}},
	}}
	s := &b.in
	s.BytesAt, s.SliceAt, s.NestedAt = &s.Bytes[2], &s.Slice[0], &s.Nested[1][2]
	s.AtomicAt, s.AtomicAtLast, s.SliceAtLast = &s.AtomicSlice[1], &s.AtomicSlice[2], &s.Slice[3]
	s.Prefix, s.Whole, s.Head, s.Row = s.Slice[:2], s.Slice[:8], s.Bytes[:], s.Nested[1][:]
	s.Again, s.AtomicsPrefix = s.Nested, s.AtomicSlice[:1]
	return b
}

func save(t *testing.T, root any) []byte {
	t.Helper()
	var image bytes.Buffer
	if _, err := state.Save(context.Background(), &image, root); err != nil {
		t.Fatal(err)
	}
	return image.Bytes()
}

func load(t *testing.T, image []byte, root any) {
	t.Helper()
	if err := tryLoad(image, root); err != nil {
		t.Fatal(err)
	}
}

func tryLoad(image []byte, root any) error {
	_, err := state.Load(context.Background(), bytes.NewReader(image), root)
	return err
}

// expectArrays compares field by field, as they are many.
func expectArrays(t *testing.T, loaded *box[arrays]) {
	t.Helper()
	got, want := reflect.ValueOf(&loaded.in).Elem(), reflect.ValueOf(&newArrays().in).Elem()
	for i := range want.NumField() {
		name, got, want := want.Type().Field(i).Name, got.Field(i), want.Field(i)
		if !reflect.DeepEqual(got.Interface(), want.Interface()) {
			t.Errorf("%s is %v, not %v", name, got, want)
		}
		if want.Kind() == reflect.Slice && got.Cap() != want.Cap() {
			t.Errorf("%s has room for %d, not for %d", name, got.Cap(), want.Cap())
		}
	}
	if behind := loaded.in.Spare[:4]; behind[3] != 163 {
		t.Errorf("behind the end of Spare is %d", behind[3])
	}
}

func expectShared(t *testing.T, loaded *box[shared]) {
	t.Helper()
	got, want := &loaded.in, &newShared().in
	if !reflect.DeepEqual(got, want) {
		t.Errorf("it is %+v, not %+v", got, want)
	}
	same := map[string]bool{
		"BytesAt":       got.BytesAt == &got.Bytes[2],
		"SliceAt":       got.SliceAt == &got.Slice[0],
		"AtomicAt":      got.AtomicAt == &got.AtomicSlice[1],
		"NestedAt":      got.NestedAt == &got.Nested[1][2],
		"Prefix":        &got.Prefix[0] == &got.Slice[0] && cap(got.Prefix) == 8,
		"Head":          &got.Head[0] == &got.Bytes[0],
		"Whole":         &got.Whole[0] == &got.Slice[0],
		"Row":           &got.Row[0] == &got.Nested[1][0],
		"Again":         got.Again == got.Nested,
		"SliceAtLast":   got.SliceAtLast == &got.Slice[3],
		"AtomicAtLast":  got.AtomicAtLast == &got.AtomicSlice[2],
		"AtomicsPrefix": &got.AtomicsPrefix[0] == &got.AtomicSlice[0] && cap(got.AtomicsPrefix) == 3,
	}
	for name, is := range same {
		if !is {
			t.Errorf("%s is not in the same place any more", name)
		}
	}
}

func TestArraysSurvive(t *testing.T) {
	root := newArrays()
	root.in.Own[0].dropped = 3
	var loaded box[arrays]
	load(t, save(t, root), &loaded)
	expectArrays(t, &loaded)
}

func TestWhatIsInTwoPlacesSurvives(t *testing.T) {
	var loaded box[shared]
	load(t, save(t, newShared()), &loaded)
	expectShared(t, &loaded)
}

// valued saves a copy of an array, which has no address.
type valued struct{ array [4]byte }

func (*valued) StateTypeName() string       { return "torpor.valued" }
func (*valued) StateFields() []string       { return []string{"array"} }
func (v *valued) StateSave(sink state.Sink) { sink.SaveValue(0, v.array) }
func (v *valued) StateLoad(_ context.Context, source state.Source) {
	source.LoadValue(0, new([4]byte), func(loaded any) { v.array = loaded.([4]byte) })
}

func TestAnArrayWithoutAnAddressSurvives(t *testing.T) {
	var loaded valued
	want := [4]byte{200, 201, 202, 203}
	load(t, save(t, &valued{want}), &loaded)
	if loaded.array != want {
		t.Errorf("it is %v, not %v", loaded.array, want)
	}
}

func TestWhatIsSavedIsTheirMemory(t *testing.T) {
	root := newArrays()
	image := save(t, root)
	memories := map[string][]byte{
		"Bytes":       root.in.Bytes[:],
		"Octets":      {130, 131, 132},
		"Atomics":     {0x98, 0xba, 0xdc, 0xfe, 0, 0, 0, 0, 7, 0, 0, 0},
		"Large":       root.in.Large[:],
		"Spare":       {160, 161, 162, 163, 0, 0, 0, 0, 0},
		"AtomicSlice": {255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 1},
		"Keys":        {190, 191, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"Values":      {210, 211, 212, 213},
		"Boxed":       {220, 221, 222, 223},
	}
	for name, memory := range memories {
		if !bytes.Contains(image, memory) {
			t.Errorf("%s is not in the image", name)
		}
	}
}

// TestAnImageOfTheUnchangedSource is run twice: by the source without the changes, which writes the images,
// and by that with them.
func TestAnImageOfTheUnchangedSource(t *testing.T) {
	folder := os.Getenv("TORPOR_IMAGES")
	if folder == "" {
		t.Fatal("where are the images?")
	}
	roots := map[string]any{"arrays": newArrays(), "shared": newShared()}
	for name, root := range roots {
		image, path := save(t, root), folder+"/"+name
		if os.Getenv("TORPOR_WRITE") != "" {
			if err := os.WriteFile(path, image, 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(before) <= len(image) {
			t.Errorf("%s took %d bytes before, and takes %d", name, len(before), len(image))
		}
		switch name {
		case "arrays":
			var loaded box[arrays]
			load(t, before, &loaded)
			expectArrays(t, &loaded)
		case "shared":
			var loaded box[shared]
			load(t, before, &loaded)
			expectShared(t, &loaded)
		}
	}
}

type five struct {
	Array [5]byte
	After string
}

func TestAnotherLengthIsRefused(t *testing.T) {
	array := []byte{200, 201, 202, 203, 204}
	whole := save(t, &box[five]{five{[5]byte(array), "after"}})
	at := bytes.Index(whole, append([]byte{5}, array...))
	if at < 0 {
		t.Fatal("there is no array of five in the image")
	}
	for _, other := range [][]byte{{}, array[:1], array[:4], append(slices.Clone(array), 205), make([]byte, 127)} {
		with := slices.Concat(whole[:at], []byte{byte(len(other))}, other, whole[at+6:])
		var loaded box[five]
		expectRefused(t, tryLoad(with, &loaded))
		if loaded.in.Array != [5]byte{} {
			t.Errorf("%d bytes were put into it", len(other))
		}
	}
	var loaded box[five]
	load(t, whole, &loaded)
	if loaded.in.Array != [5]byte(array) || loaded.in.After != "after" {
		t.Errorf("the whole one is %+v", loaded.in)
	}
}

// What is no array of numbers must never be filled from an image, least of all pointers.
func TestOtherElementsAreRefused(t *testing.T) {
	image := save(t, &box[struct{ Field [16]byte }]{struct{ Field [16]byte }{[16]byte{3: 200, 15: 1}}})
	var pointers box[struct{ Field [2]*five }]
	expectRefused(t, tryLoad(image, &pointers))
	if pointers.in.Field != [2]*five{} {
		t.Error("pointers were made of bytes")
	}
	expectRefused(t, tryLoad(image, new(box[struct{ Field [16]bool }])))
	expectRefused(t, tryLoad(image, new(box[struct{ Field [2]uint64 }])))
	expectRefused(t, tryLoad(image, new(box[struct{ Field [1]string }])))
	expectRefused(t, tryLoad(image, new(box[struct{ Field [16]struct{} }])))
	expectRefused(t, tryLoad(image, new(box[struct{ Field uint64 }])))
	expectRefused(t, tryLoad(image, new(box[struct{ Field []byte }])))
}

// TestAnEndInTheMiddleIsRefused cuts an image at each of its bytes.
func TestAnEndInTheMiddleIsRefused(t *testing.T) {
	image := save(t, newArrays())
	for end := range image {
		if tryLoad(image[:end], new(box[arrays])) == nil {
			t.Errorf("the first %d of %d bytes were taken for all", end, len(image))
		}
	}
}

func expectRefused(t *testing.T, err error) {
	t.Helper()
	var refusal *state.ErrState
	if !errors.As(err, &refusal) {
		t.Errorf("the answer was %v", err)
	}
}

// The state package has never saved a slice that begins within another; it must not become two.
func TestASliceThatBeginsWithinAnotherIsRefusedAsBefore(t *testing.T) {
	whole := []byte{150, 151, 152, 153}
	root := &box[struct{ Whole, Part []byte }]{struct{ Whole, Part []byte }{whole, whole[1:]}}
	_, err := state.Save(context.Background(), new(bytes.Buffer), root)
	expectRefused(t, err)
}
