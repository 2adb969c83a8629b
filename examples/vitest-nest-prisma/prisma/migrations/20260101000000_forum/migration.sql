CREATE TABLE "users" ("id" SERIAL PRIMARY KEY, "name" TEXT NOT NULL, "email" TEXT NOT NULL UNIQUE, "role" TEXT NOT NULL DEFAULT 'STUDENT');
CREATE TABLE "questions" ("id" SERIAL PRIMARY KEY, "title" TEXT NOT NULL, "slug" TEXT NOT NULL UNIQUE, "content" TEXT NOT NULL,
    "author_id" INTEGER NOT NULL REFERENCES "users" ("id"), "best_answer_id" INTEGER UNIQUE, "created_at" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE "answers" ("id" SERIAL PRIMARY KEY, "content" TEXT NOT NULL, "question_id" INTEGER NOT NULL REFERENCES "questions" ("id") ON DELETE CASCADE,
    "author_id" INTEGER NOT NULL REFERENCES "users" ("id"));
ALTER TABLE "questions" ADD CONSTRAINT "questions_best_answer_id_fkey" FOREIGN KEY ("best_answer_id") REFERENCES "answers" ("id") ON DELETE SET NULL;
CREATE TABLE "comments" ("id" SERIAL PRIMARY KEY, "content" TEXT NOT NULL, "author_id" INTEGER NOT NULL REFERENCES "users" ("id"),
    "question_id" INTEGER REFERENCES "questions" ("id") ON DELETE CASCADE, "answer_id" INTEGER REFERENCES "answers" ("id") ON DELETE CASCADE);
CREATE TABLE "attachments" ("id" SERIAL PRIMARY KEY, "title" TEXT NOT NULL, "link" TEXT NOT NULL UNIQUE,
    "question_id" INTEGER REFERENCES "questions" ("id") ON DELETE CASCADE, "answer_id" INTEGER REFERENCES "answers" ("id") ON DELETE CASCADE);
