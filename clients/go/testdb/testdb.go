// Package testdb gives the tests of a package a pristine PostgreSQL of a living `pg-harness run`.
//
//	func TestMain(m *testing.M) { testdb.Main(m) }       // this process takes a database: DATABASE_URL, PGHOST … are its own
//	func TestOne(t *testing.T)  { testdb.Reset(t); … }   // pristine, for tests one after the other
//	func TestTwo(t *testing.T)  { t.Parallel(); db := testdb.New(t); … }  // one of its own, given back at the end of the test
//
// One file, the standard library only. Written by `pg-harness init go`; it is yours: change what you like.
package testdb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A test, or the process, waits this long for a database while others have all of them; PGHARNESS_LEASE_WAIT says another number of seconds.
const wait = 300

// patience is for any other answer: a reset may be a fresh clone on a busy machine.
const patience = 2 * time.Minute

const command = "pg-harness run -n 4 -- go test ./..."

// Database is one database of the run, leased.
type Database struct {
	ID  int               // its number, as in DATABASE_URL_1
	URL string            // postgresql://…
	Env map[string]string // DATABASE_URL, PGHOST … and those of [tool.pg-harness.env]

	mutex sync.Mutex
	user  string // the test that has reset it last, and has not ended
}

var own struct {
	once     sync.Once
	database *Database
	err      error
}

var taken struct {
	sync.Mutex
	count int
}

// Main is all of a TestMain: it takes a database for this process, sets its variables, runs set-up functions and the tests, gives the
// database back and exits. `go test ./...` runs one process for each package, several at a time; one that finds no database free waits.
// A package whose tests all call New needs no Main.
func Main(m *testing.M, setUp ...func() error) {
	flag.Parse()
	if list := flag.Lookup("test.list"); list != nil && list.Value.String() != "" {
		os.Exit(m.Run())
	}
	os.Exit(run(m, setUp))
}

func run(m *testing.M, setUp []func() error) int {
	database, err := take()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testdb:", err)
		return 1
	}
	// Whoever is killed before gives it back by being gone.
	defer database.release()
	for _, act := range setUp {
		if err := act(); err != nil {
			fmt.Fprintln(os.Stderr, "testdb: set-up:", err)
			return 1
		}
	}
	return m.Run()
}

// Reset makes this process's database pristine, or brings it back to the last mark. Open connections stay as they are.
func Reset(t testing.TB) *Database {
	t.Helper()
	database, err := take()
	if err != nil {
		t.Fatal("testdb:", err)
	}
	database.Reset(t)
	return database
}

// Mark makes the present state of this process's database what Reset comes back to, until t and its subtests have ended.
func Mark(t testing.TB) {
	t.Helper()
	database, err := take()
	if err != nil {
		t.Fatal("testdb:", err)
	}
	database.Mark(t)
}

// MarkPackage does so until the end of the process: for the set-up functions of Main.
func MarkPackage() error {
	database, err := take()
	if err == nil {
		_, err = database.mark()
	}
	return err
}

// New takes a pristine database for this test alone, as tests under t.Parallel need it, and gives it back at the test's end. Its address
// is in what it returns: environment variables are the process's.
func New(t testing.TB) *Database {
	t.Helper()
	database, err := lease(t.Name())
	if err != nil {
		t.Fatal("testdb:", err)
	}
	t.Cleanup(func() {
		if err := database.release(); err != nil {
			t.Error("testdb:", err)
		}
	})
	return database
}

// Reset makes this database pristine, or brings it back to the last mark.
func (d *Database) Reset(t testing.TB) {
	t.Helper()
	d.use(t)
	if err := call(http.MethodPost, fmt.Sprintf("/v1/reset/%d", d.ID), nil, nil, patience); err != nil {
		t.Fatal("testdb:", err)
	}
}

// Mark makes the present state what Reset comes back to, until t and its subtests have ended.
func (d *Database) Mark(t testing.TB) {
	t.Helper()
	mark, err := d.mark()
	if err != nil {
		t.Fatal("testdb:", err)
	}
	t.Cleanup(func() {
		path := fmt.Sprintf("/v1/mark/%d/%s", d.ID, url.PathEscape(mark))
		if err := call(http.MethodDelete, path, nil, nil, patience); err != nil {
			t.Error("testdb:", err)
		}
	})
}

// use says that t is the one whose rows are in it: two tests at once would reset it below each other.
func (d *Database) use(t testing.TB) {
	t.Helper()
	d.mutex.Lock()
	defer d.mutex.Unlock()
	name, before := t.Name(), d.user
	if before != "" && before != name && !strings.HasPrefix(name, before+"/") {
		t.Fatalf("testdb: database %d is in use by %s, which runs at the same time: tests under t.Parallel take one each, by testdb.New(t)", d.ID, before)
	}
	if before == name {
		return
	}
	d.user = name
	t.Cleanup(func() {
		d.mutex.Lock()
		defer d.mutex.Unlock()
		d.user = before
	})
}

func (d *Database) mark() (string, error) {
	var answer struct{ Mark string }
	err := call(http.MethodPost, fmt.Sprintf("/v1/mark/%d", d.ID), nil, &answer, patience)
	return answer.Mark, err
}

func (d *Database) release() error {
	return call(http.MethodPost, fmt.Sprintf("/v1/release/%d", d.ID), nil, nil, patience)
}

// take is this process's database: once, whoever asks first. Its variables are set.
func take() (*Database, error) {
	own.once.Do(func() {
		database, err := lease(strings.TrimSuffix(filepath.Base(os.Args[0]), ".test"))
		if err == nil {
			for name, value := range database.Env {
				if err = os.Setenv(name, value); err != nil {
					break
				}
			}
		}
		own.database, own.err = database, err
	})
	return own.database, own.err
}

func lease(who string) (*Database, error) {
	if os.Getenv("PGHARNESS_COPIES") != "" {
		return nil, errors.New("a copy of `pg-harness run --copies` has one database, and the processes of `go test` would share it. Run `" + command + "` instead")
	}
	seconds := wait
	if text := os.Getenv("PGHARNESS_LEASE_WAIT"); text != "" {
		var err error
		if seconds, err = strconv.Atoi(text); err != nil || seconds < 0 || seconds > 3600 {
			return nil, fmt.Errorf("PGHARNESS_LEASE_WAIT is a number of seconds up to 3600, not %q", text)
		}
	}
	taken.Lock()
	taken.count++
	worker := fmt.Sprintf(" (%d.%d)", os.Getpid(), taken.count)
	taken.Unlock()
	// A name that no other lease has: the same worker would be given the same database once more.
	asked := map[string]any{"worker": printable(who, 150) + worker, "pid": os.Getpid(), "wait": seconds}
	database := &Database{}
	if err := call(http.MethodPost, "/v1/lease", asked, database, time.Duration(seconds)*time.Second+patience); err != nil {
		return nil, err
	}
	return database, nil
}

func printable(text string, longest int) string {
	kept := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return kept[:min(len(kept), longest)]
}

var client = http.Client{Transport: &http.Transport{
	// No proxy: what is asked is on this machine.
	DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if path, found := strings.CutPrefix(os.Getenv("PGHARNESS_CONTROL_URL"), "unix://"); found {
			if decoded, err := url.PathUnescape(path); err == nil {
				path = decoded
			}
			network, address = "unix", path
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	},
	MaxIdleConnsPerHost: 16,
}}

func call(method, path string, body, answer any, patience time.Duration) error {
	base, token := os.Getenv("PGHARNESS_CONTROL_URL"), os.Getenv("PGHARNESS_CONTROL_TOKEN")
	if base == "" || token == "" {
		return errors.New("these tests have no database: they were started outside of pg-harness. Run `" + command + "`")
	}
	host := base
	if strings.HasPrefix(base, "unix://") {
		host = "http://localhost"
	}
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, host+path, bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("PGHARNESS_CONTROL_URL is no address: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("nobody answers at %s (PGHARNESS_CONTROL_URL): %w. The run %s is over or was killed; its databases are gone, and no others are taken in their stead. Run `%s`",
			base, err, os.Getenv("PGHARNESS_RUN"), command)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("the answer of %s broke off: %w", base, err)
	}
	if response.StatusCode < 300 {
		if answer == nil {
			return nil
		}
		if err := json.Unmarshal(raw, answer); err != nil {
			return fmt.Errorf("%s %s was answered by what is no JSON: %w", method, path, err)
		}
		return nil
	}
	var problem struct{ Detail, Title string }
	if json.Unmarshal(raw, &problem) != nil || problem.Detail == "" {
		problem.Detail = problem.Title + string(raw[:min(len(raw), 300)])
	}
	// It names who has the databases, where none is free.
	return fmt.Errorf("pg-harness: %s (%s %s: %d)", problem.Detail, method, path, response.StatusCode)
}
