package seccheck

import "testing"

func TestWhatCanBeTracedIsListedWhenSomebodyAsks(t *testing.T) {
	if len(Points) != 0 {
		t.Fatalf("%d points are listed already", len(Points))
	}
	conf := SessionConfig{Name: DefaultSessionName, Points: []PointConfig{{Name: "syscall/openat/enter"}}}
	if err := Create(&conf, false); err != nil {
		t.Fatal(err)
	}
	if err := Delete(DefaultSessionName); err != nil {
		t.Fatal(err)
	}
	conf.Points[0].Name = "syscall/nothing/enter"
	if err := Create(&conf, false); err == nil {
		t.Error("a point was traced that there is not")
	}
}
