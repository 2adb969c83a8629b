/*
 * Marks: states above the baseline, each as the pages that differ from the state below.
 *
 * A mark is a file in a folder of the server's data directory, so that it outlives the session that made it:
 *
 *     header | page images, 8 kB each | which pages they are | relations whose size, or existence, differs
 *
 * The session lays the marks that are set over what it knows of the baseline, the lowest first (use_marks), and takes them
 * off again, the highest first: each remembers what it has covered.
 */
#include "pgh.h"

#include <sys/mman.h>
#include <unistd.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define FOLDER "pgh_marks"
#define LONGEST_NAME 128
#define SEAL "pghmark1"

typedef struct Header
{
	char		seal[8];
	uint32		version;		/* of PostgreSQL */
	Oid			baseline;
	uint32		pages,
				nodes;
} Header;

typedef struct PageKey
{
	RelNumber	node;
	ForkNumber	fork;
	BlockNumber block;
} PageKey;

typedef struct Image
{
	PageKey		key;
	const char *page;
} Image;

typedef struct Mark
{
	char		name[LONGEST_NAME];
	char	   *base;			/* of the mapped file */
	size_t		length;
	const Header *header;
	const PageKey *pages;
	const MarkNode *nodes;
	const char **covered_pages; /* what these pages were in the state below; NULL: the baseline's */
	Known	   *covered_nodes;	/* .. and these relations; with a node of 0: not there */
} Mark;

struct MarkWriter
{
	char		path[MAXPGPATH];
	int			fd;
	int			room_pages,
				room_nodes;
	Header		header;
	PageKey    *pages;
	MarkNode   *nodes;
};

static List *stack = NIL;		/* of Mark, the lowest first */
static HTAB *images = NULL;

PG_FUNCTION_INFO_V1(pgh_forget);

static void
path_of(char *path, const char *name)
{
	if (name[0] == '\0' || strlen(name) >= LONGEST_NAME ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name))
		ereport(ERROR, errcode(ERRCODE_INVALID_NAME), errmsg("\"%s\" is no name of a mark", name));
	snprintf(path, MAXPGPATH, FOLDER "/%s", name);
}

static Mark *
open_mark(const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	Mark	   *mark = palloc0(sizeof *mark);
	char		path[MAXPGPATH];
	off_t		length = -1;
	int			fd;

	MemoryContextSwitchTo(old);
	path_of(path, name);
	memcpy(mark->name, name, strlen(name) + 1);
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	/* Not fstat: before 2.33 the GNU library has it under another name. */
	if (fd < 0 || (length = lseek(fd, 0, SEEK_END)) < 0)
		ereport(ERROR, errcode_for_file_access(), errmsg("mark \"%s\" cannot be read: %m", path));
	mark->length = length;
	mark->base = mark->length < BLCKSZ ? MAP_FAILED : mmap(NULL, mark->length, PROT_READ, MAP_SHARED, fd, 0);
	CloseTransientFile(fd);
	if (mark->base == MAP_FAILED)
		ereport(ERROR, errcode(ERRCODE_DATA_CORRUPTED), errmsg("mark \"%s\" cannot be mapped", path));
	mark->header = (const Header *) mark->base;
	if (memcmp(mark->header->seal, SEAL, sizeof mark->header->seal) != 0 || mark->header->version != PG_VERSION_NUM ||
		mark->header->baseline != known_baseline ||
		mark->length != (1 + (size_t) mark->header->pages) * BLCKSZ + mark->header->pages * sizeof(PageKey) +
		mark->header->nodes * sizeof(MarkNode))
	{
		munmap(mark->base, mark->length);
		ereport(ERROR, errcode(ERRCODE_DATA_CORRUPTED), errmsg("mark \"%s\" is of another baseline, or was cut off", path));
	}
	mark->pages = (const PageKey *) (mark->base + (1 + (size_t) mark->header->pages) * BLCKSZ);
	mark->nodes = (const MarkNode *) (mark->pages + mark->header->pages);
	return mark;
}

static void
close_mark(Mark *mark)
{
	munmap(mark->base, mark->length);
	pfree(mark);
}

static const char *
image_in(const Mark *mark, uint32 number)
{
	return mark->base + (1 + (size_t) number) * BLCKSZ;
}

/* --- laid over what is known, and taken off ---------------------------------------------------------------------------- */

static void
set_image(const PageKey *key, const char *page)
{
	if (page == NULL)
		(void) hash_search(images, key, HASH_REMOVE, NULL);
	else
		((Image *) hash_search(images, key, HASH_ENTER, NULL))->page = page;
}

static void
lay_over(Mark *mark)
{
	MemoryContext old;

	/* First what may fail: half of a mark must not lie over what is known. */
	for (uint32 i = 0; i < mark->header->nodes; i++)
		if (known_below(mark->nodes[i].node) != NULL)
			measure_baseline(known_baseline, known_below(mark->nodes[i].node));
	old = MemoryContextSwitchTo(TopMemoryContext);
	mark->covered_pages = palloc0(sizeof(char *) * (mark->header->pages + 1));
	mark->covered_nodes = palloc0(sizeof(Known) * (mark->header->nodes + 1));
	stack = lappend(stack, mark);
	MemoryContextSwitchTo(old);
	for (uint32 i = 0; i < mark->header->pages; i++)
	{
		Image	   *image = hash_search(images, &mark->pages[i], HASH_FIND, NULL);

		mark->covered_pages[i] = image ? image->page : NULL;
		set_image(&mark->pages[i], image_in(mark, i));
	}
	for (uint32 i = 0; i < mark->header->nodes; i++)
	{
		const MarkNode *node = &mark->nodes[i];
		Known	   *known = known_below(node->node);

		if (known != NULL)
			mark->covered_nodes[i] = *known;
		known = know_file(node->node, node->oid, node->table, node->kind, node->unlogged);
		known->gone = node->gone;
		known->measured = true;
		memcpy(known->want, node->want, sizeof known->want);
	}
}

static void
take_off(void)
{
	Mark	   *mark = llast(stack);

	for (uint32 i = mark->header->nodes; i-- > 0;)
	{
		const Known *covered = &mark->covered_nodes[i];
		Known	   *known;

		if (covered->node == 0)
		{
			forget_file(mark->nodes[i].node);
			continue;
		}
		known = know_file(covered->node, covered->oid, covered->table, kind_of(covered), covered->unlogged);
		known->gone = covered->gone;
		memcpy(known->want, covered->want, sizeof known->want);
	}
	for (uint32 i = mark->header->pages; i-- > 0;)
		set_image(&mark->pages[i], mark->covered_pages[i]);
	pfree(mark->covered_pages);
	pfree(mark->covered_nodes);
	stack = list_delete_last(stack);
	close_mark(mark);
}

void
forget_marks(void)
{
	while (stack != NIL)
		take_off();
}

static int
names_in(ArrayType *array, Datum **names)
{
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, names, NULL, &n);
	return n;
}

/* From now on the state to go back to is the baseline with these marks over it, the lowest first. */
void
use_marks(ArrayType *array)
{
	Datum	   *names;
	int			n = names_in(array, &names),
				same = 0;
	ListCell   *cell;

	if (images == NULL)
		images = make_table("pgh images", 256, sizeof(PageKey), sizeof(Image), TopMemoryContext);
	foreach(cell, stack)
	{
		if (same == n || strcmp(((Mark *) lfirst(cell))->name, TextDatumGetCString(names[same])) != 0)
			break;
		same++;
	}
	while (list_length(stack) > same)
		take_off();
	for (; same < n; same++)
		lay_over(open_mark(TextDatumGetCString(names[same])));
}

/* What differs in these marks' states from those below is to be put back, though the log does not name it any more. */
void
note_marks(Seen *seen, ArrayType *array)
{
	Datum	   *names;
	int			n = names_in(array, &names);

	for (int m = 0; m < n; m++)
	{
		Mark	   *mark = open_mark(TextDatumGetCString(names[m]));

		for (uint32 i = 0; i < mark->header->pages; i++)
		{
			Dirty	   *dirty = seen_file(seen, mark->pages[i].node);

			dirty->blocks[mark->pages[i].fork] = bms_add_member(dirty->blocks[mark->pages[i].fork],
																 (int) mark->pages[i].block);
		}
		for (uint32 i = 0; i < mark->header->nodes; i++)
		{
			Dirty	   *dirty = seen_file(seen, mark->nodes[i].node);

			dirty->all = true;
			dirty->dropped |= mark->nodes[i].gone;
		}
		close_mark(mark);
	}
}

const char *
marked_page(RelNumber node, ForkNumber fork, BlockNumber block)
{
	PageKey		key = {node, fork, block};
	Image	   *image = images == NULL ? NULL : hash_search(images, &key, HASH_FIND, NULL);

	return image == NULL ? NULL : image->page;
}

/* --- written ------------------------------------------------------------------------------------------------------------ */

static void
put(MarkWriter *writer, const void *bytes, size_t length, off_t offset)
{
	while (length > 0)
	{
		ssize_t		done = pwrite(writer->fd, bytes, length, offset);

		if (done <= 0)
		{
			int			saved = errno;

			(void) unlink(writer->path);
			errno = saved ? saved : ENOSPC;
			ereport(ERROR, errcode_for_file_access(), errmsg("mark \"%s\" cannot be written: %m", writer->path));
		}
		bytes = (const char *) bytes + done;
		length -= done;
		offset += done;
	}
}

MarkWriter *
begin_mark(const char *name)
{
	MarkWriter *writer = palloc0(sizeof *writer);

	path_of(writer->path, name);
	if (MakePGDirectory(FOLDER) != 0 && errno != EEXIST)
		ereport(ERROR, errcode_for_file_access(), errmsg("folder \"%s\" cannot be made: %m", FOLDER));
	writer->fd = OpenTransientFile(writer->path, O_CREAT | O_EXCL | O_RDWR | PG_BINARY);
	if (writer->fd < 0)
		ereport(ERROR, errcode_for_file_access(), errmsg("mark \"%s\" cannot be made: %m", writer->path));
	writer->room_pages = writer->room_nodes = 64;
	writer->pages = palloc(sizeof(PageKey) * writer->room_pages);
	writer->nodes = palloc(sizeof(MarkNode) * writer->room_nodes);
	return writer;
}

void
mark_node(MarkWriter *writer, const MarkNode *node)
{
	if (writer->header.nodes == writer->room_nodes)
		writer->nodes = repalloc_huge(writer->nodes, sizeof(MarkNode) * (writer->room_nodes *= 2));
	writer->nodes[writer->header.nodes++] = *node;
}

void
mark_page(MarkWriter *writer, RelNumber node, ForkNumber fork, BlockNumber block, const char *page)
{
	PageKey    *key;

	put(writer, page, BLCKSZ, (1 + (off_t) writer->header.pages) * BLCKSZ);
	if (writer->header.pages == writer->room_pages)
		writer->pages = repalloc_huge(writer->pages, sizeof(PageKey) * (writer->room_pages *= 2));
	key = &writer->pages[writer->header.pages++];
	key->node = node;
	key->fork = fork;
	key->block = block;
}

void
end_mark(MarkWriter *writer)
{
	off_t		offset = (1 + (off_t) writer->header.pages) * BLCKSZ;
	char		block[BLCKSZ];

	memcpy(writer->header.seal, SEAL, sizeof writer->header.seal);
	writer->header.version = PG_VERSION_NUM;
	writer->header.baseline = known_baseline;
	put(writer, writer->pages, writer->header.pages * sizeof(PageKey), offset);
	offset += writer->header.pages * sizeof(PageKey);
	put(writer, writer->nodes, writer->header.nodes * sizeof(MarkNode), offset);
	/* Last of all: what was cut off has no seal. A whole block, also of a mark without pages. */
	memset(block, 0, BLCKSZ);
	memcpy(block, &writer->header, sizeof writer->header);
	put(writer, block, BLCKSZ, 0);
	CloseTransientFile(writer->fd);
}

/* pgh_forget(mark text): its file is removed; nothing happens where it is gone. */
Datum
pgh_forget(PG_FUNCTION_ARGS)
{
	char		path[MAXPGPATH];

	path_of(path, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (unlink(path) != 0 && errno != ENOENT)
		ereport(ERROR, errcode_for_file_access(), errmsg("mark \"%s\" cannot be removed: %m", path));
	PG_RETURN_VOID();
}
